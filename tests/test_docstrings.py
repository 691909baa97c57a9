"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import flexdraft_jax

_PACKAGE = Path(flexdraft_jax.__file__).parent
_MODULES = sorted(
    ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
    for path in _PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", _MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".__init__"))
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_public_calls_have_examples() -> None:
    names = ("generate", "stream", "load_default", "make_mesh", "parse_mesh")
    without = [name for name in names if ">>> " not in (getattr(flexdraft_jax, name).__doc__ or "")]
    assert not without
