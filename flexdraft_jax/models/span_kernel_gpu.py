"""Attention to spans of keys on NVIDIA GPUs by Triton, see `span_kernel.py`.

A program takes a tile of the queries that share a key/value head and walks over the blocks of keys
that they see, with an online softmax. Few rows would leave most of a GPU idle: their keys are split
among several programs, and XLA merges what those found (Flash-Decoding).

JAX 0.11 warns that Pallas will drop Triton for Mosaic GPU; to move there takes a GPU to try it on.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flexdraft_jax.models.layers import precision
from flexdraft_jax.models.masks import MASKED

# Most queries of a program, and keys that it reads at once.
_TILE, _BLOCK = 64, 64
# Programs that keep a large GPU busy, twice its 132 multiprocessors.
_PROGRAMS = 264


def attend_on_gpu(
    q: jax.Array, keys: jax.Array, values: jax.Array, ends: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """q [B, K, Q, H], keys [B, K, S, H], ends [B, Q, 2] -> [B, K, Q, H] and [B, K, 1, Q].

    A head size H that is no power of two is padded to one, and the keys are copied for it.
    """
    batch, kv_heads, num_queries, head_dim = q.shape
    num_keys = keys.shape[2]
    # Triton multiplies tiles of powers of two, of 16 at least.
    tile, block = (
        min(max(pl.next_power_of_2(size), 16), most)
        for size, most in ((num_queries, _TILE), (num_keys, _BLOCK))
    )
    width = max(pl.next_power_of_2(head_dim), 16)
    num_tiles, num_blocks = pl.cdiv(num_queries, tile), pl.cdiv(num_keys, block)
    heads = batch * kv_heads
    blocks_of_split = pl.cdiv(num_blocks, max(_PROGRAMS // (heads * num_tiles), 1))
    num_splits = pl.cdiv(num_blocks, blocks_of_split)

    def by_head(x: jax.Array, rows: int) -> jax.Array:
        padding = (0, 0), (0, rows - x.shape[2]), (0, width - head_dim)
        return jnp.pad(x.reshape(heads, *x.shape[2:]), padding)

    num_rows = num_tiles * tile  # Those that are added see nothing.
    ends = jnp.pad(ends, ((0, 0), (0, num_rows - num_queries), (0, 0)))
    keys_spec = pl.BlockSpec((None, num_keys, width), lambda h, t, s: (h, 0, 0))
    out, log_total = pl.pallas_call(
        functools.partial(_kernel, num_keys=num_keys, block=block, blocks_of_split=blocks_of_split),
        grid=(heads, num_tiles, num_splits),
        in_specs=[
            pl.BlockSpec((None, tile, width), lambda h, t, s: (h, t, 0)),
            keys_spec,
            keys_spec,
            pl.BlockSpec((None, tile, 2), lambda h, t, s: (h // kv_heads, t, 0)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, tile, width), lambda h, t, s: (s, h, t, 0)),
            pl.BlockSpec((None, None, tile), lambda h, t, s: (s, h, t)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((num_splits, heads, num_rows, width), jnp.float32),
            jax.ShapeDtypeStruct((num_splits, heads, num_rows), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="attend_to_spans",
    )(by_head(q, num_rows), by_head(keys, num_keys), by_head(values, num_keys), ends)

    top = jnp.max(log_total, axis=0)
    shares = jnp.exp(log_total - top)
    total = jnp.sum(shares, axis=0)
    out = jnp.sum(shares[..., None] * out, axis=0) / total[..., None]
    out = out[:, :num_queries, :head_dim].reshape(q.shape)
    return out, (top + jnp.log(total))[:, :num_queries].reshape(batch, kv_heads, 1, num_queries)


def _kernel(
    q_ref: Any,
    keys_ref: Any,
    values_ref: Any,
    ends_ref: Any,
    out_ref: Any,
    log_total_ref: Any,
    *,
    num_keys: int,
    block: int,
    blocks_of_split: int,
) -> None:
    """One split of the keys of one head, for one tile of queries."""
    q, first, end = q_ref[...], ends_ref[:, 0], ends_ref[:, 1]
    tile, width = q.shape
    sees, split = first < end, pl.program_id(2)
    first_block = jnp.min(jnp.where(sees, first, num_keys)) // block
    end_block = pl.cdiv(jnp.max(jnp.where(sees, end, 0)), block)

    def add_block(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        old_top, total, out = carry
        slots = j * block + jnp.arange(block)
        there = (slots < num_keys)[:, None]  # Behind the last key lies anything.
        at = pl.ds(j * block, block)
        scores = jax.lax.dot_general(
            q,
            plgpu.load(keys_ref.at[at, :], mask=there, other=0.0),
            (((1,), (1,)), ((), ())),
            precision=precision(q.dtype),
            preferred_element_type=jnp.float32,
        )
        seen = (slots[None, :] >= first[:, None]) & (slots[None, :] < end[:, None])
        scores = jnp.where(seen, scores, MASKED)  # [tile, block]
        top = jnp.maximum(old_top, jnp.max(scores, axis=1))
        decay = jnp.exp(old_top - top)
        weights = jnp.exp(scores - top[:, None])
        out = decay[:, None] * out + jax.lax.dot_general(
            weights.astype(q.dtype),
            plgpu.load(values_ref.at[at, :], mask=there, other=0.0),
            (((1,), (0,)), ((), ())),
            precision=precision(q.dtype),
            preferred_element_type=jnp.float32,
        )
        return top, decay * total + jnp.sum(weights, axis=1), out

    nothing = jnp.full(tile, MASKED), jnp.zeros(tile), jnp.zeros((tile, width))
    top, total, out = jax.lax.fori_loop(
        jnp.maximum(first_block, split * blocks_of_split),
        jnp.minimum(end_block, (split + 1) * blocks_of_split),
        add_block,
        nothing,
    )
    total = jnp.where(total == 0, 1.0, total)  # Where no block was seen.
    out_ref[...] = out / total[:, None]
    log_total_ref[...] = top + jnp.log(total)
