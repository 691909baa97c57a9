"""Typed reading of one field of a parsed JSON config.

A default is for a field that is absent. `null` says what an explicit null means; without it a
null is an error like any other wrong value.
"""

import sys
from collections.abc import Mapping
from typing import Any

from flexdraft_jax.config import INT32_MAX

_REQUIRED: Any = object()


def integer(
    config: Mapping[str, Any],
    name: str,
    default: Any = _REQUIRED,
    *,
    null: Any = _REQUIRED,
    minimum: int = 1,
    maximum: int = INT32_MAX,
    where: str = "",
) -> Any:
    """An int from `minimum` to `maximum`.

    Raises:
        ValueError: absent without a default, of another type, or out of range.
    """
    value = _get(config, name, default, null, where)
    if value is default or value is null:
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise ValueError(
            f"{_label(name, where)}={value!r}: must be an integer from {minimum} to {maximum}"
        )
    return value


def number(
    config: Mapping[str, Any],
    name: str,
    default: Any = _REQUIRED,
    *,
    null: Any = _REQUIRED,
    where: str = "",
) -> float:
    """A positive finite float.

    Raises:
        ValueError: absent without a default, of another type, not positive or not finite.
    """
    value = _get(config, name, default, null, where)
    # An integer may be too large for a float; NaN fails both comparisons.
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value <= sys.float_info.max
    ):
        raise ValueError(f"{_label(name, where)}={value!r}: must be a positive number")
    return float(value)


def flag(
    config: Mapping[str, Any], name: str, default: Any = _REQUIRED, *, where: str = ""
) -> bool:
    """A bool.

    Raises:
        ValueError: absent without a default, or of another type.
    """
    value = _get(config, name, default, _REQUIRED, where)
    if not isinstance(value, bool):
        raise ValueError(f"{_label(name, where)}={value!r}: must be true or false")
    return value


def mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A JSON object; None where it is absent or null.

    Raises:
        ValueError: of another type.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}: must be an object")
    return value


def _get(config: Mapping[str, Any], name: str, default: Any, null: Any, where: str) -> Any:
    value = config.get(name, default)
    if value is _REQUIRED:
        raise ValueError(f"{_label(name, where)} is missing: must be there")
    if value is None and null is not _REQUIRED:
        return null
    return value


def _label(name: str, where: str) -> str:
    return f"{where}.{name}" if where else name
