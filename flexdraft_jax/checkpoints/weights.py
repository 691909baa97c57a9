"""Weight maps: which tensor on disk is which parameter of ours.

A map is a table of rules, one per kind of parameter. Ours are [in, out]; PyTorch's are
[out, in], so kernels are transposed on the way.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from flexdraft_jax.checkpoints.safetensors import (
    READABLE_DTYPES,
    SafetensorsDirectory,
    require_finite,
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of parameter.

    Attributes:
        path: regular expression for the whole path in our tree, such as "layers_(\\d+)/norm/scale".
        name: the tensor's name, with the groups of `path` as \\1, \\2, ...
        transpose: the tensor is stored [out, in].
    """

    path: str
    name: str
    transpose: bool = False


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one parameter is stored: the tensor's name, and whether it is transposed there."""

    name: str
    transpose: bool


@dataclasses.dataclass(frozen=True)
class ParameterReader:
    """Reads one parameter when called: all of it, or the part that a device needs.

    A call with an index has the signature that `jax.make_array_from_callback` asks for.

    Attributes:
        checkpoint: the files.
        placement: the tensor.
        dtype: what the values are cast to.
    """

    checkpoint: SafetensorsDirectory
    placement: Placement
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In our layout."""
        stored = self.checkpoint.tensors[self.placement.name].shape
        return stored[::-1] if self.placement.transpose else stored

    def __call__(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The values at `index` (in our layout). ValueError if any is NaN or infinite."""
        if index is not None and self.placement.transpose:
            index = index[::-1]
        stored = self.checkpoint.read(self.placement.name, index)
        stored = stored.T if self.placement.transpose else stored
        # Checked after the cast, so that what overflows in it is found as well.
        with np.errstate(over="ignore"):
            values = np.array(stored, self.dtype, order="C", copy=True)
        require_finite(self.placement.name, values)
        return values


def place(shapes: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Placement]:
    """Path in our tree -> where it is stored, for every leaf of `shapes`."""
    return {path: _place_one(path, rules) for path in flatten(shapes)}


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> {"layers_0/q_proj/kernel": leaf}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def _place_one(path: str, rules: Sequence[Rule]) -> Placement:
    for rule in rules:
        match = re.fullmatch(rule.path, path)
        if match:
            return Placement(match.expand(rule.name), rule.transpose)
    raise AssertionError(f"no rule for the parameter {path}")


def check_tensors(
    checkpoint: SafetensorsDirectory,
    shapes: Mapping[str, Any],
    rules: Sequence[Rule],
    ignored: Iterable[str],
) -> None:
    """Holds the files' headers against `shapes`.

    Raises:
        ValueError: one line for every tensor that is missing, unexpected (and matches no pattern
            of `ignored`), of another shape or of a dtype that is not read.
    """
    expected: dict[str, tuple[int, ...]] = {}
    placements = place(shapes, rules)
    for path, leaf in flatten(shapes).items():
        placement = placements[path]
        shape = tuple(leaf.shape)
        expected[placement.name] = shape[::-1] if placement.transpose else shape
    problems = []
    for name, shape in expected.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(f"{name}: missing, expected shape {shape}")
            continue
        if info.shape != shape:
            problems.append(f"{name}: has shape {info.shape}, expected shape {shape}")
        if info.dtype not in READABLE_DTYPES:
            problems.append(
                f"{name}: has dtype {info.dtype}, expected one of {', '.join(READABLE_DTYPES)}"
            )
    for name, info in checkpoint.tensors.items():
        if name not in expected and not any(re.fullmatch(p, name) for p in ignored):
            problems.append(f"{name}: unexpected, has shape {info.shape}, expected no such tensor")
    if problems:
        raise ValueError(
            f"{checkpoint.directory}: the tensors do not fit config.json:\n  "
            + "\n  ".join(problems)
        )


def parameter_readers(
    checkpoint: SafetensorsDirectory,
    shapes: Mapping[str, Any],
    rules: Sequence[Rule],
    dtype: np.dtype,
) -> dict[str, ParameterReader]:
    """Path -> a callable that reads that parameter. Reads nothing yet."""
    return {
        path: ParameterReader(checkpoint, placement, dtype)
        for path, placement in place(shapes, rules).items()
    }


def read_parameters(
    readers: Mapping[str, ParameterReader],
    places: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole tree, one tensor at a time, so that the host holds one tensor more than it.

    Args:
        readers: of every parameter.
        places: the tree of shardings; each process then reads its devices' parts alone. None is
            the usual device.
    """
    if places is None:
        params = {path: jnp.asarray(reader()) for path, reader in readers.items()}
    else:
        params = {}
        for path, place in flatten(places).items():
            shape, read = readers[path].shape, _OncePerPart(readers[path])
            params[path] = jax.make_array_from_callback(shape, place, read)
    return flax.traverse_util.unflatten_dict(params, sep="/")


class _OncePerPart:
    """A reader for devices that follow each other, and may hold copies of the same part."""

    def __init__(self, reader: ParameterReader) -> None:
        self._reader = reader
        self._last: tuple[Any, np.ndarray] | None = None

    def __call__(self, index: tuple[slice, ...] | None) -> np.ndarray:
        if self._last is None or self._last[0] != index:
            self._last = index, self._reader(index)
        return self._last[1]


def named_tensors(
    params: Mapping[str, Any],
    shapes: Mapping[str, Any],
    rules: Sequence[Rule],
    dtype: np.dtype | None,
) -> dict[str, np.ndarray]:
    """Name -> tensor as it is stored, for a whole tree; None keeps every parameter's own dtype.

    Raises:
        ValueError: the tree has other parameters or shapes than `shapes`.
    """
    leaves = flatten(params)
    have = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    want = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    problems = [
        f"{path}: has shape {have.get(path, 'none')}, expected shape {want.get(path, 'none')}"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    if problems:
        raise ValueError("params do not fit the config:\n  " + "\n  ".join(problems))
    tensors = {}
    for path, placement in place(shapes, rules).items():
        values = np.asarray(leaves[path])
        values = values if dtype is None else values.astype(dtype)
        tensors[placement.name] = values.T if placement.transpose else values
    return tensors
