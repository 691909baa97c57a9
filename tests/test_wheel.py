"""The wheel holds the library, the scripts and the embedded default, and nothing else.

`make wheel-test` installs it in an empty environment and runs the demo.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]
# By the folder in the repository, where it is in the wheel.
_FOLDERS = {
    "flexdraft_jax": "flexdraft_jax",
    "infer": "flexdraft_jax/infer",
    "train": "flexdraft_jax/train",
}


def test_wheel_holds_what_it_should(tmp_path: Path) -> None:
    for name in ("LICENSE", "MANIFEST.in", "pyproject.toml", "setup.py"):
        shutil.copy(_ROOT / name, tmp_path)
    wanted = set()
    for folder, inside in _FOLDERS.items():
        copy = tmp_path / folder
        shutil.copytree(_ROOT / folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        files = (path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
        wanted |= {f"{inside}/{file}" for file in files if not file.endswith(".ipynb")}
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)

    [wheel] = tmp_path.glob("*.whl")
    found = zipfile.ZipFile(wheel).namelist()
    assert {name for name in found if not name.startswith("flexdraft_jax-")} == wanted
