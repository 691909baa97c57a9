"""Attention to spans of keys on TPUs, see `span_kernel.py`.

Keys come in blocks, from the first that a tile of queries sees to the last; blocks outside are
neither fetched nor multiplied. The softmax is computed online: values, weights and the largest
score are corrected whenever a block has a larger one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flexdraft_jax.models.layers import precision
from flexdraft_jax.models.masks import MASKED

# Keys that are fetched together. Fewer waste less at the ends of a span, and take more steps.
_BLOCK = 512
# Queries, of all heads of a grid step together, that share the keys.
_TILE = 512
# Bytes of the keys of a grid step, and as many of values; there are two of each, in turns.
_BLOCK_BYTES = 2**20


def attend_on_tpu(
    q: jax.Array, keys: jax.Array, values: jax.Array, ends: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """q [B, K, Q, H], keys [B, K, S, H], ends [B, Q, 2] -> [B, K, Q, H] and [B, K, 1, Q]."""
    batch, kv_heads, num_queries, head_dim = q.shape
    num_keys = keys.shape[2]
    block = min(num_keys, _BLOCK)
    tile = min(num_queries, _TILE)
    num_blocks, num_tiles = pl.cdiv(num_keys, block), pl.cdiv(num_queries, tile)
    heads = _heads_together(kv_heads, tile, block * head_dim * keys.dtype.itemsize)
    first, count = _blocks_of_tiles(ends, num_keys, block, tile)  # [B * tiles]

    def queries_at(b: Any, t: Any, h: Any, j: Any, first: Any, count: Any) -> tuple[Any, ...]:
        return b, h, t, 0

    def keys_at(b: Any, t: Any, h: Any, j: Any, first: Any, count: Any) -> tuple[Any, ...]:
        # Behind the last block that is needed the same one again, so that nothing is fetched.
        at = b * num_tiles + t
        return b, h, first[at] + jnp.minimum(j, jnp.maximum(count[at] - 1, 0)), 0

    queries_spec = pl.BlockSpec((1, heads, tile, head_dim), queries_at)
    keys_spec = pl.BlockSpec((1, heads, block, head_dim), keys_at)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(batch, num_tiles, kv_heads // heads, num_blocks),
        in_specs=[
            queries_spec,
            keys_spec,
            keys_spec,
            pl.BlockSpec((1, tile, 2), lambda b, t, h, j, first, count: (b, t, 0)),
        ],
        out_specs=[
            queries_spec,
            pl.BlockSpec((1, heads, 1, tile), lambda b, t, h, j, first, count: (b, h, 0, t)),
        ],
        scratch_shapes=[pltpu.VMEM((heads, tile, 1), jnp.float32)] * 2,
    )
    return pl.pallas_call(
        functools.partial(_kernel, num_keys=num_keys),
        grid_spec=grid_spec,
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((batch, kv_heads, 1, num_queries), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="attend_to_spans",
    )(first, count, q, keys, values, ends)


def _heads_together(kv_heads: int, tile: int, head_bytes: int) -> int:
    """Key/value heads of one grid step: a step costs time, whatever it does."""
    most = max(1, min(_TILE // tile, _BLOCK_BYTES // head_bytes))
    return max(heads for heads in range(1, kv_heads + 1) if not kv_heads % heads and heads <= most)


def _blocks_of_tiles(
    ends: jax.Array, num_keys: int, block: int, tile: int
) -> tuple[jax.Array, jax.Array]:
    """First block of keys that each tile of queries sees, and the number of blocks: [B * tiles]."""
    first, end = ends[..., 0], ends[..., 1]
    nothing = first >= end
    padding = (0, -ends.shape[1] % tile)

    def of_tiles(x: jax.Array, fill: int) -> jax.Array:
        x = jnp.where(nothing, fill, x)
        return jnp.pad(x, ((0, 0), padding), constant_values=fill).reshape(-1, tile)

    first_block = jnp.min(of_tiles(first, num_keys - 1), axis=1) // block
    count = pl.cdiv(jnp.max(of_tiles(end, 0), axis=1), block) - first_block
    return first_block, jnp.maximum(count, 0)


def _kernel(
    first_ref: Any,
    count_ref: Any,
    q_ref: Any,
    keys_ref: Any,
    values_ref: Any,
    ends_ref: Any,
    out_ref: Any,
    log_total_ref: Any,
    top_ref: Any,
    total_ref: Any,
    *,
    num_keys: int,
) -> None:
    """One block of keys for one tile of queries of some heads; `out_ref` gathers their values."""
    _, heads, block, _ = keys_ref.shape
    at = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
    step = pl.program_id(3)
    dtype = q_ref.dtype

    @pl.when(step == 0)
    def begin() -> None:
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        out_ref[...] = jnp.zeros_like(out_ref)

    @pl.when(step < count_ref[at])
    def add_block() -> None:
        start = (first_ref[at] + step) * block
        slots = start + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
        seen = (slots >= ends_ref[0, :, 0:1]) & (slots < ends_ref[0, :, 1:2])  # [tile, block]
        for head in range(heads):
            scores = jax.lax.dot_general(
                q_ref[0, head],
                keys_ref[0, head],
                (((1,), (1,)), ((), ())),
                precision=precision(dtype),
                preferred_element_type=jnp.float32,
            )
            scores = jnp.where(seen, scores, MASKED)
            old_top = top_ref[head]
            top = jnp.maximum(old_top, jnp.max(scores, axis=1, keepdims=True))
            decay = jnp.exp(old_top - top)
            weights = jnp.exp(scores - top)
            values = values_ref[0, head]
            if num_keys % block:
                # Behind the last key lies anything, and 0 * NaN would be NaN.
                slot = start + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
                values = jnp.where(slot < num_keys, values, jnp.zeros_like(values))
            top_ref[head] = top
            total_ref[head] = decay * total_ref[head] + jnp.sum(weights, axis=1, keepdims=True)
            out_ref[0, head] = decay * out_ref[0, head] + jax.lax.dot_general(
                weights.astype(dtype),
                values,
                (((1,), (0,)), ((), ())),
                precision=precision(dtype),
                preferred_element_type=jnp.float32,
            )

    @pl.when(step == pl.num_programs(3) - 1)
    def end() -> None:
        for head in range(heads):
            total = total_ref[head]
            total = jnp.where(total == 0, 1.0, total)  # Where no block was seen.
            out_ref[0, head] = out_ref[0, head] / total
            log_total_ref[0, head] = jnp.transpose(top_ref[head] + jnp.log(total))
