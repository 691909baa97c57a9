"""Directories of a tiny model, and scripts run in this process."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from absl import flags

import flexdraft_jax as fd

SCRIPTS = Path(__file__).parents[2] / "infer"


@pytest.fixture(scope="session")
def directory(tmp_path_factory, models) -> Path:
    """Holds target/ with a tokenizer, and draft/ with n = 4."""
    path = tmp_path_factory.mktemp("tiny")
    fd.save_target(models.target, path / "target")
    fd.save_draft(models.draft, models.target, path / "draft")
    models.tokenizer.save_pretrained(path / "target")
    return path


@pytest.fixture
def run_script(directory: Path) -> Iterator[Callable[..., None]]:
    """run_script("demo", "--repeats=1") runs infer/demo.py on the tiny model."""
    before = set(flags.FLAGS)

    def run(name: str, *arguments: str, tiny: bool = True) -> None:
        spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        models = [f"--target={directory / 'target'}", f"--draft={directory / 'draft'}"]
        module.main(flags.FLAGS([name, *(models if tiny else []), *arguments]))

    yield run
    # Each script has flags of its own; all of them live in one global table.
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
