"""Imports within the package go one way, so that it can be read from top to bottom."""

import ast
from pathlib import Path

import pytest
from setuptools import find_packages

import flexdraft_jax

_PACKAGE = Path(flexdraft_jax.__file__).parent
_ORDER = (
    "config",
    "parallel",
    "models",
    "checkpoints",
    "assets",
    "decoding",
    "data",
    "evaluation",
    "training",
    "planning",
)
_MODULES = sorted(_PACKAGE.rglob("*.py"))
_TOP_LEVEL = _PACKAGE / "__init__.py"  # Re-exports the public names of every layer.


def _layer(parts: tuple[str, ...]) -> str:
    """The layer of a module, given its path or dotted name below the package."""
    return parts[0].removesuffix(".py")


def _imported_layers(source: str) -> list[tuple[int, str]]:
    """Line and layer of everything that the source imports from this package."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "flexdraft_jax" and len(parts) > 1:
                found.append((node.lineno, _layer(tuple(parts[1:]))))
    return found


def test_every_module_belongs_to_a_layer() -> None:
    layers = {_layer(path.relative_to(_PACKAGE).parts) for path in _MODULES if path != _TOP_LEVEL}
    assert layers <= set(_ORDER)
    assert set(_ORDER) <= layers


@pytest.mark.parametrize("path", _MODULES, ids=lambda path: str(path.relative_to(_PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    if path == _TOP_LEVEL:
        return
    own = _layer(path.relative_to(_PACKAGE).parts)
    for line, layer in _imported_layers(path.read_text()):
        if own in _ORDER and layer in _ORDER:
            assert _ORDER.index(layer) <= _ORDER.index(own), (
                f"{path.name}:{line}: {own} imports {layer}; the order is {' -> '.join(_ORDER)}"
            )


def test_a_wrong_import_is_seen() -> None:
    source = "from flexdraft_jax.training.loop import fit\nimport flexdraft_jax.models.cache"
    assert _imported_layers(source) == [(1, "training"), (2, "models")]


def test_every_folder_with_code_is_installed() -> None:
    folders = {".".join(path.relative_to(_PACKAGE.parent).parent.parts) for path in _MODULES}
    assert folders == set(find_packages(str(_PACKAGE.parent), include=["flexdraft_jax*"]))
