"""Attention: one function for all of it, over keys that lie in different places.

What queries see comes in parts, such as the cache, fresh candidates and their own mask group. Each
part is summed up by itself, and the sums are merged.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.models.layers import precision

# Finite, so that a fully masked part of the keys gets weight exp(_MASKED - max) = 0 and no NaN.
_MASKED = -1e30


class Part(NamedTuple):
    """Some of the keys that queries attend to.

    Attributes:
        kv: keys and values [B, K, S, H].
        mask: broadcasts to [B, T, S]; with groups, to [B * groups, T / groups, S / groups].
        num_groups: queries and keys both fall into this many equal runs, and each run of queries
            sees its own run of keys only.
    """

    kv: KeysValues
    mask: jax.Array | np.ndarray
    num_groups: int = 1


def attend(queries: jax.Array, parts: Sequence[Part]) -> jax.Array:
    """Softmax attention over the union of the parts' keys.

    Each part makes its own unnormalised sum, and the sums are merged; so the cache is read where it
    lies instead of being copied next to the fresh keys.

    Args:
        queries: [B, T, N, H].
        parts: at least one of them must show each query some key.

    Returns:
        [B, T, N, H]
    """
    batch, num_queries, heads, head_dim = queries.shape
    kv_heads = parts[0].kv.keys.shape[1]
    # Query heads r of one kv head side by side: [B, K, R, T, H].
    q = queries.reshape(batch, num_queries, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    q = q * head_dim**-0.5
    sums = [_unnormalised(q, part) for part in parts]
    top = functools.reduce(jnp.maximum, (partial.top for partial in sums))
    scales = [jnp.exp(partial.top - top) for partial in sums]
    total = functools.reduce(jnp.add, map(jnp.multiply, scales, (s.total for s in sums)))
    values = functools.reduce(jnp.add, map(jnp.multiply, scales, (s.values for s in sums)))
    out = (values / total).astype(queries.dtype)  # [B, K, R, T, H]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, num_queries, heads, head_dim)


class _PartialSum(NamedTuple):
    values: jax.Array  # [B, K, R, T, H], weighted by exp(score - top)
    total: jax.Array  # [B, K, R, T, 1], sum of the weights
    top: jax.Array  # [B, K, R, T, 1], largest score


def _unnormalised(q: jax.Array, part: Part) -> _PartialSum:
    if part.num_groups > 1:
        folded = Part(KeysValues(*(_fold(x, part.num_groups) for x in part.kv)), part.mask)
        partial = _unnormalised(_fold(q, part.num_groups), folded)
        return _PartialSum(*(_unfold(x, part.num_groups) for x in partial))
    batch, kv_heads, repeats, num_queries, head_dim = q.shape
    # One matmul a kv head: [B, K, R * T, H] x [B, K, S, H] -> [B, K, R * T, S].
    rows = q.reshape(batch, kv_heads, repeats * num_queries, head_dim)
    scores = jnp.einsum(
        "BKQH,BKSH->BKQS",
        rows,
        part.kv.keys,
        precision=precision(q.dtype),
        preferred_element_type=jnp.float32,
    )
    scores = scores.reshape(batch, kv_heads, repeats, num_queries, -1)
    mask = part.mask if part.mask.ndim == 2 else part.mask[:, None, None]  # [T, S], [B, 1, 1, T, S]
    scores = jnp.where(mask, scores, _MASKED)
    # The maximum only keeps exp() in range; it cancels in the merge, and so does its gradient.
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    values = jnp.einsum(
        "BKQS,BKSH->BKQH",
        weights.reshape(batch, kv_heads, repeats * num_queries, -1).astype(q.dtype),
        part.kv.values,
        precision=precision(q.dtype),
        preferred_element_type=jnp.float32,
    )
    values = values.reshape(q.shape)
    return _PartialSum(values, jnp.sum(weights, axis=-1, keepdims=True), top)


def _fold(x: jax.Array, num_groups: int) -> jax.Array:
    """[B, ..., groups * n, H] -> [B * groups, ..., n, H]."""
    *lead, _, head_dim = x.shape
    x = jnp.moveaxis(x.reshape(*lead, num_groups, -1, head_dim), -3, 1)
    return x.reshape(-1, *x.shape[2:])


def _unfold(x: jax.Array, num_groups: int) -> jax.Array:
    """[B * groups, ..., n, H] -> [B, ..., groups * n, H]."""
    x = jnp.moveaxis(x.reshape(-1, num_groups, *x.shape[1:]), 1, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])
