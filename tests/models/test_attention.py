"""Attention to spans of keys: a few queries at a time, and by the kernel, as all at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from flexdraft_jax.models import attention, masks, span_kernel, span_kernel_gpu, span_kernel_tpu
from flexdraft_jax.models.attention import Backend, Part, attend
from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.parallel.mesh import make_mesh

PALLAS = Backend("pallas")
HEADS, HEAD_DIM = 6, 8


@pytest.fixture(params=["tpu", "gpu"])
def kernel(request, monkeypatch):
    """Each kernel, with several blocks of keys and tiles of queries, the last of each not full."""
    if request.param == "tpu":
        monkeypatch.setattr(span_kernel_tpu, "_BLOCK", 16)
        monkeypatch.setattr(span_kernel_tpu, "_TILE", 8)
        return
    monkeypatch.setattr(span_kernel_gpu, "_BLOCK", 16)
    monkeypatch.setattr(span_kernel_gpu, "_TILE", 16)
    monkeypatch.setattr(span_kernel_gpu, "_PROGRAMS", 40)  # Two splits of the keys, or one.
    interpreted = functools.partial(span_kernel_gpu.attend_on_gpu, interpret=True)
    monkeypatch.setattr(span_kernel, "_on_any_platform", interpreted)


def normal(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def keys_values(seed: int, kv_heads: int, num_keys: int, batch: int, dtype) -> KeysValues:
    shape = (batch, kv_heads, num_keys, HEAD_DIM)
    return KeysValues(normal(seed, *shape, dtype=dtype), normal(seed + 1, *shape, dtype=dtype))


@pytest.mark.parametrize("window", [None, 11], ids=["full", "window"])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_decoding_by_the_kernel(kernel, window, kv_heads, dtype, tolerance):
    """Cache, candidates and mask groups, in rows of any length: also none, and all slots."""
    slots, candidates, groups, n = 40, 3, 3, 2
    length = jnp.array([0, 1, 16, 17, 39, 40])
    batch = len(length)
    cache = keys_values(1, kv_heads, slots, batch, dtype)
    # Rubbish of any size behind the length is not seen.
    behind = (jnp.arange(slots) >= length[:, None])[:, None, :, None]
    cache = KeysValues(*(jnp.where(behind, 1e4, x).astype(dtype) for x in cache))
    offsets = (1 + jnp.arange(groups)[:, None] + jnp.arange(n)).reshape(-1)
    positions = length[:, None] + offsets
    parts = [
        Part(cache, masks.prefix_span(length, positions, window)),
        Part(
            keys_values(3, kv_heads, candidates, batch, dtype),
            masks.group_block_mask(groups, n, candidates, window),
        ),
        Part(
            keys_values(5, kv_heads, groups * n, batch, dtype),
            masks.own_group_mask(n, window),
            groups,
        ),
    ]
    queries = normal(7, batch, groups * n, HEADS, HEAD_DIM, dtype=dtype)
    expected = attend(queries, parts)
    assert expected.dtype == dtype
    np.testing.assert_allclose(attend(queries, parts, PALLAS), expected, rtol=0, atol=tolerance)
    if window is None:
        return
    # The kernel over a mesh, here of one device.
    spread = attend(queries, parts, Backend("pallas", make_mesh(devices=jax.devices()[:1])))
    np.testing.assert_array_equal(spread, attend(queries, parts, PALLAS))


@pytest.mark.parametrize("window", [None, 11], ids=["full", "window"])
def test_packed_rows_by_the_kernel(kernel, window):
    segments = jnp.array([[1] * 3 + [2] * 20 + [3] * 14, [1] * 30 + [0] * 7])
    part = Part(keys_values(1, 2, 37, 2, jnp.float32), masks.segment_span(segments, window))
    queries = normal(3, 2, 37, HEADS, HEAD_DIM)
    np.testing.assert_allclose(
        attend(queries, [part], PALLAS), attend(queries, [part]), rtol=0, atol=2e-6
    )


def test_the_kernel_fetches_no_block_outside_the_spans():
    """By their numbers: what is fetched is what the index map names."""
    ends = jnp.array([[[0, 0], [0, 1], [5, 40], [20, 33], [7, 7]], [[0, 0]] * 5])
    first, count = span_kernel_tpu._blocks_of_tiles(ends, num_keys=40, block=16, tile=2)
    np.testing.assert_array_equal(first[:3], [0, 0, 2])
    np.testing.assert_array_equal(count, [1, 3, 0, 0, 0, 0])
    assert np.all((first >= 0) & (first < 3))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("head_dim, slots", [(128, 2048), (96, 700)])
def test_it_lowers_to_triton_for_gpus(dtype, head_dim, slots):
    """As far as that goes without a GPU: what Triton refuses is refused here."""

    def to_cache(queries, keys, values, length):
        span = masks.prefix_span(length, length[:, None] + jnp.arange(16), 300)
        return attend(queries, [Part(KeysValues(keys, values), span)], PALLAS)

    cache = jax.ShapeDtypeStruct((2, 8, slots, head_dim), dtype)
    queries = jax.ShapeDtypeStruct((2, 16, 32, head_dim), dtype)
    length = jax.ShapeDtypeStruct((2,), jnp.int32)
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=gpu)):
        traced = jax.jit(to_cache).trace(queries, cache, cache, length)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1


@pytest.mark.parametrize(("num_queries", "groups"), [(16, 1), (19, 1), (14, 7)])
def test_a_few_queries_at_a_time(monkeypatch, num_queries, groups):
    """The same numbers and gradients, whether or not the queries fall into equal parts."""
    queries = normal(1, 2, num_queries, HEADS, HEAD_DIM)
    own = Part(
        keys_values(2, 2, num_queries, 2, jnp.float32),
        np.eye(num_queries // groups, dtype=bool),
        groups,
    )
    kv = keys_values(4, 2, 30, 2, jnp.float32)
    first = jax.random.randint(jax.random.key(6), (2, num_queries), 0, 30)
    end = jnp.minimum(first + jnp.arange(num_queries), 30)

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(queries, kv):
        return jnp.sum(attend(queries, [Part(kv, masks.Span(first, end)), own]) ** 2)

    whole = loss(queries, kv)
    monkeypatch.setattr(attention, "_QUERIES_AT_ONCE", 5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-5),
        loss(queries, kv),
        whole,
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_memory_does_not_grow_with_the_square(backward):
    """What attention among the tokens of a long row takes, in scores of all with all."""
    length, heads = 4096, 4
    span = masks.segment_span(jnp.zeros((1, length), jnp.int32), None)

    def total(queries, kv):
        return jnp.sum(attend(queries, [Part(kv, span)]))

    queries = jax.ShapeDtypeStruct((1, length, heads, HEAD_DIM), jnp.float32)
    kv = KeysValues(*[jax.ShapeDtypeStruct((1, heads, length, HEAD_DIM), jnp.float32)] * 2)
    compiled = jax.jit(jax.grad(total) if backward else total).lower(queries, kv).compile()
    scores = 4 * heads * length**2
    assert compiled.memory_analysis().temp_size_in_bytes < scores * (0.8 if backward else 0.5)
