"""The notebook: committed clean, and works from top to bottom."""

import importlib.util
import os
import re
import subprocess
from importlib.machinery import ModuleSpec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "infer" / "flexdraft_colab.ipynb"


def test_is_committed_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize(
    "files, repository, source",
    [
        ([], "", None),
        ([], "https://host/name", "git+https://host/name"),
        (["flexdraft_jax-0.1.0-py3-none-any.whl"], "", "flexdraft_jax-0.1.0-py3-none-any.whl"),
        (["flexdraft_jax/flexdraft_jax/__init__.py"], "", "flexdraft_jax"),
        (["../flexdraft_jax/__init__.py"], "", ".."),
    ],
)
def test_installs_what_is_there(
    files: list[str], repository: str, source: str | None, tmp_path: Path, monkeypatch
) -> None:
    here = tmp_path / "infer"
    here.mkdir()
    for file in files:
        (here / file).resolve().parent.mkdir(parents=True, exist_ok=True)
        (here / file).touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("FLEXDRAFT_REPOSITORY", repository)
    # Of a folder without code, such as a clone, Python makes a spec that comes from nowhere.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "check_call", commands.append)
    cell = nbformat.read(NOTEBOOK, as_version=4).cells[2].source
    if source is None:
        with pytest.raises(ValueError, match=r"no flexdraft_jax-\*.whl .* REPOSITORY is empty"):
            exec(cell, {})
    else:
        exec(cell, {})
        [[*_, installed]] = [[part for part in c if "jax[" not in part] for c in commands]
        assert installed == source or Path(installed) == (here / source).resolve()


@pytest.mark.slow
def test_works_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("FLEXDRAFT_SMALL", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=folder).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"\x1b\[3[26]m", text), "accepted drafts have no colour"
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "token for token: yes" in text
    assert "2 of 2" in text  # What was exported answers like plain decoding.
    assert "evaluation at step 2" in text
    assert (tmp_path / "flexdraft_colab" / "draft" / "model.safetensors").exists()
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # acceptance, tau while training, both drafts
