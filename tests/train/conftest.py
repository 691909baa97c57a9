"""Scripts run in this process."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from absl import flags

_SCRIPTS = Path(__file__).parents[2] / "train"


@pytest.fixture
def run_script() -> Iterator[Callable[..., None]]:
    """run_script("prepare_data", "--input=a.jsonl", patches) runs train/prepare_data.py."""
    before = set(flags.FLAGS)

    def run(name: str, *arguments: str, **patches: object) -> None:
        spec = importlib.util.spec_from_file_location(f"script_{name}", _SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for attribute, value in patches.items():
            assert hasattr(module, attribute)
            setattr(module, attribute, value)
        try:
            module.main(flags.FLAGS([name, *arguments]))
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()

    yield run
