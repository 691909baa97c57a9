"""The mesh of devices, and from logical axes to places on it.

    data    rows only; every weight is whole along it
    fsdp    rows, and the width of every weight: gathered when it is used
    tensor  heads, MLP width and vocabulary: each device computes its part

One table, `RULES`, says which mesh axes a logical axis is spread over, in training and in decoding.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flexdraft_jax.config import COUNT, INT32_MAX, TargetConfig, check_fields

MESH_AXES = ("data", "fsdp", "tensor")

# Mesh axes of each logical axis; an empty tuple is whole on every device.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "block": (),
    "slots": (),
    "output": (),
    "stops": (),
    "embed": ("fsdp",),
    "width": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    # Each device has its part of every expert, so that none waits for another.
    "experts": (),
    "vocab": ("tensor",),
    # The calibration's two matrices [2E, r] and [r, V]: both are spread over both axes.
    "calibration_in": ("tensor",),
    "calibration_rank": ("fsdp",),
}


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of the given shape over the devices of all processes, or over the first of them.

    >>> dict(make_mesh(data=1, tensor=1).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}

    Args:
        data: copies of the weights.
        fsdp: parts that weights and optimizer state are stored in.
        tensor: parts that heads, MLP and vocabulary are computed in; their size must divide by it.
        devices: to choose from; those of all processes if None.

    Raises:
        ValueError: a size below 1, more devices asked for than there are, or a process of several
            left without a part.
    """
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in shape.items():
        if type(size) is not int:
            raise TypeError(f"{name}={size!r}: must be an integer")
        if size < 1:
            raise ValueError(f"{name}={size}: must be at least 1")
    devices = jax.devices() if devices is None else devices
    wanted, found = math.prod(shape.values()), len(devices)
    num_processes = len({device.process_index for device in devices})
    text = " * ".join(f"{name}={size}" for name, size in shape.items())
    if wanted > found:
        raise ValueError(f"{text} is {wanted} devices, but there are {found}")
    if wanted < found and num_processes > 1:
        raise ValueError(
            f"{text} is {wanted} devices: must be all {found} of {num_processes} processes, "
            "since each of them takes part"
        )
    # In the order of processes, not in that of the interconnect, which jax.make_mesh takes: the
    # rows that a process reads must be one run.
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    # Auto axes: linen's logically partitioned modules fail under explicit ones.
    return Mesh(
        np.array(in_order[:wanted]).reshape(tuple(shape.values())),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * 3,
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How arrays are spread over devices; as text, "data=2,tensor=4"."""

    data: int = 0  # Copies of the weights, each for its own rows; 0 takes all devices left over.
    fsdp: int = 1  # Parts that weights and optimizer state are stored in; rows are split too.
    tensor: int = 1  # Parts that heads, MLP and vocabulary are computed in.

    def __post_init__(self) -> None:
        check_fields(self, "mesh.", data=(0, INT32_MAX), fsdp=COUNT, tensor=COUNT)

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh.

        Args:
            devices: as for `make_mesh`.

        Raises:
            ValueError: the sizes do not fit the devices that are there.
        """
        devices = jax.devices() if devices is None else devices
        data = self.data or len(devices) // (self.fsdp * self.tensor) or 1
        return make_mesh(data, self.fsdp, self.tensor, devices)


def parse_mesh(text: str) -> MeshConfig:
    """Reads what `--mesh` takes.

    >>> parse_mesh("data=2,tensor=4")
    MeshConfig(data=2, fsdp=1, tensor=4)

    Raises:
        ValueError: an axis that is not there or is named twice, or a size that is none.
    """
    if not isinstance(text, str):
        raise TypeError(f"mesh={text!r}: must be text such as data=2,tensor=4")
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in MESH_AXES or name in sizes or not re.fullmatch(r"\d{1,9}", size):
            raise ValueError(
                f"mesh={text!r}: must be sizes of {', '.join(MESH_AXES)}, each once at most, such "
                "as data=2,tensor=4; data takes the devices that are left over if it is not named"
            )
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def shardings(
    mesh: Mesh, logical_axes: Any, shapes: Any, config: TargetConfig | None = None
) -> Any:
    """Where every array of a tree lies.

    Args:
        mesh: of `make_mesh`.
        logical_axes: a tree with a `PartitionSpec` or tuple of names from `LOGICAL_AXES` per array.
        shapes: the same tree with anything that has a `shape`.
        config: of the target that the arrays belong to, where heads are folded into a dimension,
            as in projections: no head is ever cut in two. Key/value heads that do not divide among
            `tensor` are whole on every device.

    Returns:
        The same tree of `NamedSharding`s.

    Raises:
        ValueError: names every array with an axis that is not in the table, two dimensions on one
            mesh axis, or a dimension that does not divide.
    """
    heads = {} if config is None else {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
    problems: list[str] = []

    def place(path: tuple[Any, ...], axes: Any, array: Any) -> NamedSharding:
        try:
            return NamedSharding(mesh, _spec(mesh, tuple(axes), array.shape, heads))
        except ValueError as error:
            problems.append(f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {error}")
            return replicated(mesh)

    placed = jax.tree_util.tree_map_with_path(place, logical_axes, shapes, is_leaf=_is_axes)
    if problems:
        raise ValueError("; ".join(problems))
    return placed


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Of arrays whose leading dimension are B rows.

    Raises:
        ValueError: `batch_size` does not divide among the devices that rows are spread over.
    """
    try:
        return NamedSharding(mesh, _spec(mesh, ("batch",), (batch_size,), {}))
    except ValueError as error:
        raise ValueError(f"batch_size={batch_size}: {error}") from error


def constrain(tree: Any, mesh: Mesh | None, logical_axes: Any, config: TargetConfig) -> Any:
    """Says within a compiled program where the arrays of a tree lie; nothing is left to chance.

    Args:
        tree: arrays.
        mesh: None says nothing.
        logical_axes: as for `shardings`, like the config.
        config: of the target.
    """
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(mesh, logical_axes, tree, config))


def whole_along_fsdp(tree: Any, mesh: Mesh | None, logical_axes: Any, config: TargetConfig) -> Any:
    """Within a compiled program: weights whole along `fsdp`, for a loop that uses them each time.

    Within the loop XLA would put their parts together in every round. Arguments are those of
    `constrain`.
    """
    if mesh is None:
        return tree

    def place(sharding: NamedSharding) -> NamedSharding:
        # Of weights, each dimension lies on one mesh axis at most.
        spec = (None if names in ("fsdp", ("fsdp",)) else names for names in sharding.spec)
        return NamedSharding(mesh, PartitionSpec(*spec))

    places = jax.tree.map(place, shardings(mesh, logical_axes, tree, config))
    return jax.lax.with_sharding_constraint(tree, places)


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Within a compiled program: [B, ...] has its rows spread and is whole else.

    Rows that do not divide, as those that read their prompts while others decode, are everywhere.
    """
    if mesh is None:
        return x
    rows = RULES["batch"] if x.shape[0] % row_devices(mesh) == 0 else None
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(rows)))


def check_is_mesh(mesh: Any) -> None:
    """Checks what a caller gave as a mesh; None is fine.

    Raises:
        TypeError: it is none.
        ValueError: it is none of `make_mesh`.
    """
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh={mesh!r}: must be a Mesh or None")
    if mesh.axis_names != MESH_AXES:
        raise ValueError(f"mesh {dict(mesh.shape)}: must be one of make_mesh, with {MESH_AXES}")


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a tree lie on; None if they were never laid on one.

    Raises:
        ValueError: it is none of `make_mesh`.
    """
    place = jax.tree.leaves(tree)[0].sharding
    if not isinstance(place, NamedSharding):
        return None
    mesh = place.mesh
    if not isinstance(mesh, Mesh) or mesh.axis_names != MESH_AXES:
        raise ValueError(f"mesh {dict(mesh.shape)}: must be one of make_mesh, with {MESH_AXES}")
    return mesh


def row_devices(mesh: Mesh | None) -> int:
    """How many parts the rows of a batch are spread over."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in RULES["batch"])


def describe_mesh(mesh: Mesh | None) -> str:
    """Such as "data=2,tensor=4 of devices 0 to 7"."""
    if mesh is None:
        return "no mesh"
    sizes = [f"{name}={size}" for name, size in mesh.shape.items() if size > 1] or ["data=1"]
    ids = [device.id for device in mesh.devices.flat]
    return f"{','.join(sizes)} of devices {min(ids)} to {max(ids)}"


def optimizer_shardings(
    opt_state: Any, param_shardings: Any, params: Any, others: NamedSharding
) -> Any:
    """Places each part of an optimizer's state with the parameter that it belongs to.

    A part belongs to a parameter if its path ends in the parameter's and it has the same shape;
    that holds for means of gradients and master copies in any nesting of optax transformations,
    masked ones included. The rest, such as step counters, is whole on every device.

    Args:
        opt_state: arrays or shapes, as of `jax.eval_shape(optimizer.init, params)`.
        param_shardings: the parameters' places.
        params: arrays or shapes.
        others: for the rest.
    """
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    places = dict(jax.tree_util.tree_leaves_with_path(param_shardings))

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            if shapes.get(path[start:]) == leaf.shape:
                return places[path[start:]]
        return others

    return jax.tree_util.tree_map_with_path(place, opt_state)


def put(tree: Any, places: Any) -> Any:
    """Lays arrays where they belong.

    Of those that every process holds whole, each process hands over its own part alone, so nothing
    travels between hosts. What comes back shares no memory with them: it may be donated.

    Args:
        tree: arrays, the same on every process, or spread over all of them.
        places: the same tree of shardings.
    """

    def lay(array: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding, may_alias=False)
        host = np.asarray(array)
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: np.array(host[index])
        )

    return jax.tree.map(lay, tree, places)


def _is_axes(node: Any) -> bool:
    return isinstance(node, PartitionSpec) or (
        isinstance(node, tuple) and all(isinstance(axis, str) for axis in node)
    )


def _spec(
    mesh: Mesh,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    heads: Mapping[str, int],
) -> PartitionSpec:
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not match shape {shape}")
    spec: list[tuple[str, ...]] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in RULES:
            raise ValueError(f"axis {axis!r} is not in the table of mesh axes {sorted(RULES)}")
        mesh_axes = RULES[axis]
        units = heads.get(axis, size)
        if units % math.prod(mesh.shape[name] for name in mesh_axes):
            if axis != "kv_heads":
                sizes = " * ".join(f"{name}={mesh.shape[name]}" for name in mesh_axes)
                raise ValueError(f"{axis} of {units} does not divide into {sizes} parts")
            mesh_axes = ()
        spec.append(mesh_axes)
    used = [name for mesh_axes in spec for name in mesh_axes]
    for name in used:
        if used.count(name) > 1:
            both = [axis for axis, mesh_axes in zip(axes, spec, strict=True) if name in mesh_axes]
            raise ValueError(f"{' and '.join(both)} of shape {shape} both lie on {name}")
    return PartitionSpec(*(mesh_axes or None for mesh_axes in spec))
