"""From logical axes to places on a mesh. Shapes alone matter, so the mesh is an abstract one."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.models.draft import draft_logical_axes, draft_shapes
from flexdraft_jax.models.target import target_logical_axes, target_shapes
from flexdraft_jax.parallel.axes import LOGICAL_AXES
from flexdraft_jax.parallel.mesh import (
    MESH_AXES,
    RULES,
    MeshConfig,
    make_mesh,
    optimizer_shardings,
    parse_mesh,
    put,
    replicated,
    row_sharding,
    shardings,
)
from flexdraft_jax.training.config import OptimizerConfig, TargetModelConfig
from flexdraft_jax.training.optimizer import make_optimizer

_DRAFT = DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8)


def _mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Any:
    return AbstractMesh((data, fsdp, tensor), MESH_AXES)


def _target(**changes: Any) -> TargetConfig:
    return TargetModelConfig(**{"num_layers": 1, **changes}).build(1024, (2,))


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_the_table_knows_every_logical_axis_and_no_other() -> None:
    assert set(RULES) == set(LOGICAL_AXES)
    assert {name for mesh_axes in RULES.values() for name in mesh_axes} == set(MESH_AXES)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": False}, {}, {"experts": True}])
def test_every_large_weight_is_spread_over_fsdp_and_tensor(
    changes: dict[str, bool], every_feature: dict[str, Any]
) -> None:
    config, mesh = _target(), _mesh(fsdp=4, tensor=2)
    config = dataclasses.replace(config, **(every_feature if "experts" in changes else changes))
    shapes = {"target": target_shapes(config), "draft": draft_shapes(config, _DRAFT)}
    axes = {"target": target_logical_axes(config), "draft": draft_logical_axes(config, _DRAFT)}
    for path, place in jax.tree_util.tree_leaves_with_path(shardings(mesh, axes, shapes, config)):
        shape = shapes
        for key in path:
            shape = shape[key.key]
        part = math.prod(place.shard_shape(shape.shape))
        # A router is as wide as there are experts: small.
        if len(shape.shape) >= 2 and path[-1].key != "router":
            assert part == math.prod(shape.shape) // 8, jax.tree_util.keystr(path)


def test_query_heads_and_key_heads_are_never_cut() -> None:
    shapes, axes = _shape(256, 128), PartitionSpec("embed", "kv_heads")
    assert shardings(_mesh(tensor=2), axes, shapes, _target()).spec[1] == "tensor"
    # Two heads of 64 numbers would divide into four parts, of half a head each.
    assert shardings(_mesh(tensor=4), axes, shapes, _target()).spec[1] is None
    config = _target(num_heads=6)
    with pytest.raises(ValueError, match="o_proj/kernel: heads of 6 .* tensor=4 parts"):
        shardings(_mesh(tensor=4), target_logical_axes(config), target_shapes(config), config)


def test_problems_name_the_array_and_the_numbers() -> None:
    mesh = _mesh(data=2, fsdp=3, tensor=2)
    axes = {"a": ("embed", "mlp"), "b": ("embed", "batch"), "c": ("depth",), "d": ("batch",)}
    shapes = {"a": _shape(6, 5), "b": _shape(6, 6), "c": _shape(1), "d": _shape(2, 2)}
    with pytest.raises(ValueError) as error:
        shardings(mesh, axes, shapes)
    assert str(error.value).split("; ") == [
        "a: mlp of 5 does not divide into tensor=2 parts",
        "b: embed and batch of shape (6, 6) both lie on fsdp",
        f"c: axis 'depth' is not in the table of mesh axes {sorted(RULES)}",
        "d: axes ('batch',) do not match shape (2, 2)",
    ]
    with pytest.raises(ValueError, match="batch_size=9: .*data=2 . fsdp=3 parts"):
        row_sharding(mesh, 9)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 4])] * 3),
    axes=st.lists(st.sampled_from(sorted(RULES)), min_size=1, max_size=4, unique=True),
    factor=st.integers(1, 3),
)
def test_parts_make_up_the_whole(sizes: tuple[int, ...], axes: list[str], factor: int) -> None:
    mesh = _mesh(*sizes)
    shape = _shape(*[factor * 16] * len(axes))
    try:
        place = shardings(mesh, tuple(axes), shape)
    except ValueError as error:
        assert "both lie on" in str(error)
        return
    parts = [math.prod(mesh.shape[name] for name in RULES[axis]) for axis in axes]
    assert place.shard_shape(shape.shape) == tuple(16 * factor // part for part in parts)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_lies_with_its_parameter(name: str) -> None:
    config, mesh = _target(), _mesh(fsdp=2, tensor=2)
    params = draft_shapes(config, _DRAFT)
    places = shardings(mesh, draft_logical_axes(config, _DRAFT), params, config)
    optimizer = make_optimizer(
        OptimizerConfig(steps=10, batch_size=1, learning_rate=1.0, optimizer=name)
    )
    state = jax.eval_shape(optimizer.init, params)
    found = optimizer_shardings(state, places, params, NamedSharding(mesh, PartitionSpec()))
    expected = dict(jax.tree_util.tree_leaves_with_path(places))
    seen = 0
    for path, place in jax.tree_util.tree_leaves_with_path(found):
        owner = [own for own in expected if path[-len(own) :] == own]
        assert place.spec == (expected[owner[0]].spec if owner else PartitionSpec())
        seen += bool(owner)
    matrices = sum("proj" in jax.tree_util.keystr(path) for path in expected)
    # AdamW keeps two means of every parameter, Muon one of each matrix that it takes.
    assert seen == 2 * len(expected) - (matrices if name == "muon" else 0)


def test_what_was_put_may_be_donated() -> None:
    mesh = make_mesh()
    source = {"a": jnp.arange(4.0), "b": jnp.ones(())}
    state = put(source, jax.tree.map(lambda _: replicated(mesh), source))
    after = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(state)
    np.testing.assert_array_equal(after["a"], -source["a"])
    np.testing.assert_array_equal(source["a"], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "data=0: must be at least 1"),
        ({"data": 64, "tensor": 64}, r"data=64 \* fsdp=1 \* tensor=64 is 4096 devices"),
    ],
)
def test_meshes_that_cannot_be(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_devices_lie_in_the_order_of_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a slice, where neighbours in the interconnect belong to different hosts."""

    class Device:
        platform = "tpu"

        def __init__(self, number: int, process: int) -> None:
            self.id, self.process_index = number, process

    devices = [Device(number, process=number // 2 % 2) for number in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    processes = [device.process_index for device in make_mesh(fsdp=8).devices.flat]
    assert processes == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("tensor=1", (0, 1, 1)), ("data=2,tensor=4", (2, 1, 4)), ("fsdp=8,data=3", (3, 8, 1))],
)
def test_a_mesh_as_text(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_mesh(text) == MeshConfig(*sizes)


@pytest.mark.parametrize(
    "text", ["", "4", "model=2", "tensor=2,tensor=2", "tensor=-1", "tensor=", "data=" + "9" * 5000]
)
def test_text_that_is_no_mesh(text: str) -> None:
    with pytest.raises(ValueError, match=f"mesh='{text}': must be sizes of data, fsdp, tensor"):
        parse_mesh(text)


def test_data_takes_the_devices_that_are_left_over() -> None:
    assert MeshConfig().build().shape["data"] == jax.device_count()
    with pytest.raises(ValueError, match="tensor=0: must be at least 1"):
        parse_mesh("tensor=0")
    with pytest.raises(ValueError, match=r"tensor=\d+ is \d+ devices, but there are"):
        MeshConfig(tensor=jax.device_count() + 1).build()
