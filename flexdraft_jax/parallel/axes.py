"""Logical axes: what each dimension of an array means, independent of any mesh.

Weights declare their axes where they are created (`models.layers.weight`), state declares them on
its fields with `array_field`. The table in `parallel/mesh.py` says which mesh axes they lie on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct

# Every logical axis of the project.
LOGICAL_AXES = {
    "batch": "B, rows that are decoded or trained together",
    "block": "n, tokens of a candidate block, or mask tokens of a group",
    "slots": "S, positions of the key/value cache",
    "output": "S as well: emitted tokens of a row, or steps it took part in",
    "stops": "stop tokens of a row",
    "embed": "E, width of the weights",
    "width": "E, of hidden states: their rows lie where the width of the weights does",
    "heads": "N*H, all query heads of a projection",
    "kv_heads": "K, or K*H in a projection",
    "head_dim": "H",
    "mlp": "F",
    "experts": "X",
    "vocab": "V",
    "calibration_in": "2E, bonus embedding and hidden state",
    "calibration_rank": "r",
}


def check_axes(axes: Sequence[str]) -> None:
    """Raises ValueError for axes that `LOGICAL_AXES` does not know."""
    unknown = [axis for axis in axes if axis not in LOGICAL_AXES]
    if unknown:
        raise ValueError(f"axes={unknown}: not in LOGICAL_AXES {sorted(LOGICAL_AXES)}")


def array_field(*axes: str) -> Any:
    """A field of a `flax.struct` dataclass that holds an array (or a tuple of arrays) with `axes`.

    Raises:
        ValueError: an axis that `LOGICAL_AXES` does not know.
    """
    check_axes(axes)
    return flax.struct.field(metadata={"axes": axes})


def logical_axes(struct: Any) -> Any:
    """The same struct with every array replaced by its tuple of logical axes.

    Args:
        struct: an instance of a `flax.struct` dataclass made of `array_field`s and of structs.

    Raises:
        ValueError: a field holds arrays and declares no axes.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(struct):
        value = getattr(struct, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = logical_axes(value)
        elif "axes" not in field.metadata:
            raise ValueError(f"{type(struct).__name__}.{field.name}: declares no logical axes")
        elif isinstance(value, tuple):
            changes[field.name] = tuple(field.metadata["axes"] for _ in value)
        else:
            changes[field.name] = field.metadata["axes"]
    return dataclasses.replace(struct, **changes)
