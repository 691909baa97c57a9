"""Configuration files: Python files with a `get_config()`, and overrides from the command line.

An override is `field=value` or `part.field=value`, for example `train.learning_rate=3e-4`. The
value is read according to the field's declared type, so a word where a number belongs is an error,
and so is a field that does not exist.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT")

_TRUE = {"true", "1", "yes"}
_FALSE = {"false", "0", "no"}


def load_config(
    path: str | Path, expected: type[ConfigT], overrides: Iterable[str] = ()
) -> ConfigT:
    """Loads the configuration that the file at `path` builds, with overrides applied.

    Args:
        path: a Python file that defines `get_config()` without arguments.
        expected: the dataclass that `get_config()` must return.
        overrides: strings such as `train.steps=100`, applied in order.

    Raises:
        ValueError: the file is missing or has no `get_config`, it returns another type, or an
            override names an unknown field or carries a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"config={str(path)!r}: no such Python file; pass one of configs/*.py")
    spec = importlib.util.spec_from_file_location(f"flexdraft_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # A .py path always has a loader.
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # It is a program; anything may happen in it.
        raise ValueError(f"config={str(path)!r}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"config={str(path)!r} defines no get_config()")
    try:
        config = module.get_config()
    except (TypeError, ValueError) as error:  # A field that does not exist, a value out of range.
        raise ValueError(f"config={str(path)!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"config={str(path)!r}: {type(error).__name__}: {error}") from error
    if not isinstance(config, expected):
        raise ValueError(
            f"config={str(path)!r}: get_config() returned {type(config).__name__}, "
            f"this command needs {expected.__name__}"
        )
    return apply_overrides(config, overrides)


def apply_overrides(config: ConfigT, overrides: Iterable[str]) -> ConfigT:
    """Returns `config` with every `name=value` of `overrides` applied; see :func:`load_config`.

    >>> from flexdraft_jax.parallel.mesh import MeshConfig
    >>> apply_overrides(MeshConfig(), ["tensor=4"])
    MeshConfig(data=0, fsdp=1, tensor=4)
    >>> apply_overrides(MeshConfig(), ["tensr=4"])
    Traceback (most recent call last):
    ValueError: unknown config field 'tensr'; nearest: tensor
    """
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"override {override!r} has no '='; write field=value")
        config = _replace(config, name.strip().split("."), text.strip(), name.strip())
    return config


def _replace(config: Any, parts: Sequence[str], text: str, full_name: str) -> Any:
    name, rest = parts[0], parts[1:]
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    if name not in fields:
        nearest = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(fields)}"
        raise ValueError(f"unknown config field {full_name!r}; {hint}")
    if dataclasses.is_dataclass(fields[name]):
        if not rest:
            inner = ", ".join(item.name for item in dataclasses.fields(fields[name]))
            raise ValueError(f"config field {full_name!r} is a group; set one of: {inner}")
        value = _replace(fields[name], rest, text, full_name)
    elif rest:
        raise ValueError(f"unknown config field {full_name!r}; {name!r} has no parts")
    else:
        value = _parse_value(text, typing.get_type_hints(type(config))[name], full_name)
    return dataclasses.replace(config, **{name: value})


def _parse_value(text: str, kind: Any, name: str) -> Any:
    """Reads `text` as a value of type `kind`; `name` is for the error message.

    Understands int, float, bool, str and Literal.

    Raises:
        ValueError: the text is no such value.
    """
    if typing.get_origin(kind) is typing.Literal:
        arguments = typing.get_args(kind)
        if text not in arguments:
            raise ValueError(f"{name}={text!r}: must be one of {', '.join(map(repr, arguments))}")
        return text
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(f"{name}={text!r}: must be true or false")
    if kind in (int, float):
        try:
            return kind(text.replace("_", ""))
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise ValueError(f"{name}={text!r}: must be {what}") from None
    raise ValueError(f"{name} of type {kind} cannot be set from the command line")
