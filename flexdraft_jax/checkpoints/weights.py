"""Weight maps: which tensor on disk is which parameter of ours.

A map is a table of rules, one per kind of parameter. Ours are [in, out]; PyTorch's are
[out, in], so kernels are transposed on the way. Most parameters are one tensor each; some families
store several in one, or one in several.
"""

import collections
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

    Parameters whose rules give the same name share a tensor: there they lie one below the other, in
    the order of the rules.

    Attributes:
        path: regular expression for the whole path in our tree, such as "layers_(\\d+)/norm/scale".
        name: the tensor's name, with the groups of `path` as \\1, \\2, ... With "{}" in it the
            parameter is a stack of as many tensors as its first axis is long: "{}" is the index.
        transpose: the tensors are stored [out, in].
    """

    path: str
    name: str
    transpose: bool = False


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one parameter is stored.

    Attributes:
        name: the tensor's, with "{}" where there is one for each index of our first axis.
        transpose: the tensors are stored transposed.
        stack: how many tensors; None for one, which has no such axis.
        rows: first and end of its rows in a tensor that holds others too; None is all of it.
    """

    name: str
    transpose: bool
    stack: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def names(self) -> list[str]:
        """Of all its tensors."""
        return (
            [self.name] if self.stack is None else [self.name.format(i) for i in range(self.stack)]
        )


@dataclasses.dataclass(frozen=True)
class ParameterReader:
    """Reads one parameter when called: all of it, or the part that a device needs.

    A call with an index has the signature that `jax.make_array_from_callback` asks for.

    Attributes:
        checkpoint: the files.
        placement: the tensors.
        dtype: what the values are cast to.
    """

    checkpoint: SafetensorsDirectory
    placement: Placement
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In our layout."""
        placement = self.placement
        shape = self.checkpoint.tensors[placement.names[0]].shape
        if placement.rows is not None:
            shape = (placement.rows[1] - placement.rows[0], *shape[1:])
        shape = shape[::-1] if placement.transpose else shape
        return shape if placement.stack is None else (placement.stack, *shape)

    def __call__(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The values at `index` (in our layout). ValueError if any is NaN or infinite."""
        if index is None:
            index = (slice(None),) * len(self.shape)
        if self.placement.stack is None:
            return self._read(self.placement.name, index)
        names = self.placement.names[index[0]]
        return np.stack([self._read(name, index[1:]) for name in names])

    def _read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Of one tensor."""
        index = index[::-1] if self.placement.transpose else index
        if self.placement.rows is not None:
            first, end = self.placement.rows
            start, stop, _ = index[0].indices(end - first)
            index = (slice(first + start, first + stop), *index[1:])
        stored = self.checkpoint.read(name, index)
        stored = stored.T if self.placement.transpose else stored
        # Checked after the cast, so that what overflows in it is found as well.
        with np.errstate(over="ignore"):
            values = np.array(stored, self.dtype, order="C", copy=True)
        require_finite(name, values, self.checkpoint.tensors[name].path)
        return values


def place(shapes: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Placement]:
    """Path in our tree -> where it is stored, for every leaf of `shapes`, in the rules' order."""
    leaves = flatten(shapes)
    matched = {path: _match(path, rules) for path in leaves}
    sharing = collections.Counter(name for _, name in matched.values())
    ends: collections.Counter[str] = collections.Counter()
    placements = {}
    for path in sorted(leaves, key=lambda path: matched[path][0]):
        number, name = matched[path]
        placement = Placement(name, rules[number].transpose)
        shape = tuple(leaves[path].shape)
        if "{}" in name:
            placement = dataclasses.replace(placement, stack=shape[0])
        elif sharing[name] > 1:
            first = ends[name]
            ends[name] += shape[-1] if placement.transpose else shape[0]
            placement = dataclasses.replace(placement, rows=(first, ends[name]))
        placements[path] = placement
    return placements


def stored_shapes(
    shapes: Mapping[str, Any], placements: Mapping[str, Placement]
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that `place` knows of."""
    found: dict[str, tuple[int, ...]] = {}
    leaves = flatten(shapes)
    for path, placement in placements.items():
        shape = tuple(leaves[path].shape)
        shape = shape if placement.stack is None else shape[1:]
        shape = shape[::-1] if placement.transpose else shape
        # The last of those that share a tensor ends where the tensor does.
        shape = shape if placement.rows is None else (placement.rows[1], *shape[1:])
        found |= dict.fromkeys(placement.names, shape)
    return found


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> {"layers_0/q_proj/kernel": leaf}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def _match(path: str, rules: Sequence[Rule]) -> tuple[int, str]:
    """Number of the first rule for a path, and the tensor's name."""
    for number, rule in enumerate(rules):
        match = re.fullmatch(rule.path, path)
        if match:
            return number, match.expand(rule.name)
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
    expected = stored_shapes(shapes, place(shapes, rules))
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
    parts: dict[str, list[np.ndarray]] = {}
    for path, placement in place(shapes, rules).items():
        values = np.asarray(leaves[path])
        values = values if dtype is None else values.astype(dtype)
        stacked = [values] if placement.stack is None else values
        for name, part in zip(placement.names, stacked, strict=True):
            parts.setdefault(name, []).append(part.T if placement.transpose else part)
    return {name: x[0] if len(x) == 1 else np.concatenate(x) for name, x in parts.items()}
