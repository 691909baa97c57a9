"""Scripts run in this process."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from absl import flags

_SCRIPTS = Path(__file__).parents[2] / "train"


@pytest.fixture
def run_script() -> Callable[..., None]:
    """run_script("prepare_data", "--input=a.jsonl", patches) runs train/prepare_data.py."""

    def run(name: str, *arguments: str, **patches: object) -> None:
        spec = importlib.util.spec_from_file_location(f"script_{name}", _SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # absl asks here which module defines a flag.
        spec.loader.exec_module(module)
        for attribute, value in patches.items():
            assert hasattr(module, attribute)
            setattr(module, attribute, value)
        try:
            module.main(flags.FLAGS([name, *arguments]))
        finally:
            for flag in list(flags.FLAGS):
                if flags.FLAGS.find_module_defining_flag(flag) == spec.name:
                    delattr(flags.FLAGS, flag)
            del sys.modules[spec.name]
            flags.FLAGS.unparse_flags()

    return run
