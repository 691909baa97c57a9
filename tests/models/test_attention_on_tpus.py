"""The kernel, compiled for TPUs by their own compiler, which needs none of them."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.decoding.loop import read_prompt_chunk, run
from flexdraft_jax.decoding.program import choose_program
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.rows import row_settings
from flexdraft_jax.decoding.state import init_state
from flexdraft_jax.models import masks
from flexdraft_jax.models.attention import Backend, Part, attend
from flexdraft_jax.models.cache import KeysValues, init_cache
from flexdraft_jax.models.draft import Draft, draft_shapes, draft_shardings
from flexdraft_jax.models.flexdraft import flexdraft_variables
from flexdraft_jax.models.target import Target, target_shapes, target_shardings
from flexdraft_jax.parallel.axes import logical_axes
from flexdraft_jax.parallel.mesh import make_mesh, shardings
from flexdraft_jax.planning.compiling import abstract
from flexdraft_jax.planning.topology import parse_slice, slice_devices

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"),
]
PALLAS = Backend("pallas")


@pytest.fixture(params=["v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def devices(request):
    return slice_devices(parse_slice(request.param))


def compiled(function, place, *shapes):
    """Optimised HLO; `place` is of every argument, or one of each."""
    places = place if isinstance(place, tuple) else (place,) * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for (shape, dtype), sharding in zip(shapes, places, strict=True)
    ]
    return jax.jit(function).lower(*arguments).compile().as_text()


def to_cache(queries, keys, values, length, window=None, backend=PALLAS):
    positions = length[:, None] + jnp.arange(queries.shape[1])
    span = masks.prefix_span(length, positions, window)
    return attend(queries, [Part(KeysValues(keys, values), span)], backend)


def shapes(batch, num_queries, heads, kv_heads, slots, head_dim, dtype=jnp.bfloat16):
    cache = (batch, kv_heads, slots, head_dim), dtype
    return ((batch, num_queries, heads, head_dim), dtype), cache, cache, ((batch,), jnp.int32)


@pytest.mark.parametrize(
    "sizes",
    [
        (8, 1, 32, 8, 2048, 128),  # plain decoding
        (8, 16, 32, 8, 1040, 128),  # candidates, and a cache that is no multiple of a block
        (4, 256, 32, 8, 2048, 128),  # 16 mask groups of 16
        (4, 512, 16, 8, 1024, 128),  # reading prompts
        (3, 5, 14, 2, 128, 64),  # nothing is a multiple of anything
        (2, 7, 32, 32, 768, 128, jnp.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [None, 1024], ids=["full", "window"])
def test_attention_to_the_cache_compiles(devices, sizes, window):
    place = SingleDeviceSharding(devices[0])
    text = compiled(lambda *args: to_cache(*args, window), place, *shapes(*sizes))
    assert text.count('custom_call_target="tpu_custom_call"') == 1


def test_attention_in_packed_rows_compiles(devices):
    def clean(queries, keys, values, segments):
        span = masks.segment_span(segments, None)
        return attend(queries, [Part(KeysValues(keys, values), span)], PALLAS)

    *arrays, _ = shapes(1, 4096, 32, 8, 4096, 128)
    place = SingleDeviceSharding(devices[0])
    text = compiled(clean, place, *arrays, ((1, 4096), jnp.int32))
    assert 'custom_call_target="tpu_custom_call"' in text


def test_spread_over_a_mesh_nothing_travels(devices):
    mesh = make_mesh(tensor=4, devices=devices[:4])
    heads = NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    kv_heads = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    rows = NamedSharding(mesh, PartitionSpec())
    places = heads, kv_heads, kv_heads, rows
    backend = Backend("pallas", mesh)
    text = compiled(
        lambda *args: to_cache(*args, backend=backend), places, *shapes(8, 16, 32, 8, 1024, 128)
    )
    assert 'custom_call_target="tpu_custom_call"' in text
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)


SMALL = TargetConfig(
    model_type="qwen3",
    vocab_size=512,
    hidden_size=512,
    intermediate_size=1024,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    qk_norm=True,
)
SMALL_DRAFT = DraftConfig(num_draft_layers=1, block_size=8, calibration_rank=128)
BATCH, SLOTS = 8, 4096  # So many that what is left is small beside them: it is of the layers.
CACHE_BYTES = 2 * SMALL.num_layers * BATCH * SMALL.num_kv_heads * SLOTS * SMALL.head_dim * 2


def small_program(mesh):
    """With the kernel; the shapes of its variables and state."""
    target = Target(SMALL, target_shapes(SMALL, jnp.bfloat16))
    draft = Draft(SMALL_DRAFT, draft_shapes(SMALL, SMALL_DRAFT, jnp.bfloat16))
    program, _ = choose_program(
        target,
        draft,
        "parallel",
        SMALL_DRAFT.block_size,
        "cumulative_product",
        "coupled",
        None,
        batch_size=BATCH,
        num_slots=SLOTS,
        attention="pallas",
        mesh=mesh,
    )

    def begin():
        cache = init_cache(SMALL, BATCH, SLOTS, jnp.bfloat16)
        requests = [Request(prompt=(0,), max_new_tokens=1)] * BATCH
        return init_state(SMALL, cache, block_size=program.block_size, **row_settings(requests))

    return program, flexdraft_variables(target, draft), jax.eval_shape(begin)


def test_the_decoding_loop_keeps_its_cache_in_place(devices):
    program, *shapes = small_program(None)
    place = SingleDeviceSharding(devices[0])
    limit = jax.ShapeDtypeStruct((), jnp.int32)
    on_device = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (*shapes, limit, limit)
    )
    loop = run.lower(program, *on_device).compile()
    assert loop.memory_analysis().alias_size_in_bytes >= CACHE_BYTES
    assert loop.memory_analysis().temp_size_in_bytes < CACHE_BYTES / 6
    text = loop.as_text()
    assert 'custom_call_target="tpu_custom_call"' in text
    assert not re.search(r"= bf16\[8,4,4096,128\]\S* copy\(", text)


@pytest.mark.parametrize("num_rows", [None, 1, 4])
def test_reading_prompts_compiles_on_a_mesh(devices, num_rows):
    """Of all rows, of one (which does not divide among the chips) and of some."""
    mesh = make_mesh(data=2, tensor=2, devices=devices[:4])
    program, variables, state = small_program(mesh)
    places = {
        "target": target_shardings(SMALL, mesh),
        "draft": draft_shardings(SMALL, SMALL_DRAFT, mesh),
    }
    variables = {"params": abstract(variables["params"], places)}
    state = abstract(state, shardings(mesh, logical_axes(state), state, SMALL))
    count = num_rows or BATCH
    small = (((count, 64), jnp.int32), ((count,), jnp.int32), ((count,), jnp.bool_))
    # As they come from a host: where they lie is left to the compiler.
    rows = None if num_rows is None else jax.ShapeDtypeStruct((count,), jnp.int32)
    reading = read_prompt_chunk.lower(
        program.for_prefill(),
        variables,
        state,
        rows,
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in small),
    ).compile()
    text = reading.as_text()
    # Every layer of the target, and the draft's.
    assert text.count('custom_call_target="tpu_custom_call"') == SMALL.num_layers + 1
    assert reading.memory_analysis().alias_size_in_bytes >= CACHE_BYTES / mesh.size
