"""Attention: one function for all of it, over keys that lie in different places.

What queries see comes in parts, such as the cache, fresh candidates and their own mask group. Each
part is summed up by itself, and the sums are merged.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.models.layers import precision
from flexdraft_jax.models.masks import MASKED, Span
from flexdraft_jax.models.scopes import StepPart
from flexdraft_jax.models.span_kernel import attend_to_spans

# Of queries whose scores exist at once: attention to a long row takes the memory of so many.
_QUERIES_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class Backend:
    """What sums up the parts whose mask is a `Span`: the cache, and packed rows in training.

    Attributes:
        name: "reference" is made of XLA's own operations. It reads every slot of the cache.
            "pallas" is a kernel for TPUs or NVIDIA GPUs that reads what is seen, in blocks of
            keys; elsewhere it is interpreted, which is slow. It has no gradient.
        mesh: that the arrays lie on, None for one device. XLA spreads its own operations by
            itself; the kernel has to be told.
    """

    name: str = "reference"
    mesh: Mesh | None = None


BACKENDS = ("reference", "pallas")
REFERENCE = Backend()


class Part(NamedTuple):
    """Some of the keys that queries attend to.

    Attributes:
        kv: keys and values [B, K, S, H].
        mask: broadcasts to [B, T, S]; with groups, [T / groups, S / groups]. A `Span` has no
            groups.
        num_groups: queries and keys both fall into this many equal runs, and each run of queries
            sees its own run of keys only. Parts that have groups have as many.
    """

    kv: KeysValues
    mask: jax.Array | np.ndarray | Span
    num_groups: int = 1


def attend(queries: jax.Array, parts: Sequence[Part], backend: Backend = REFERENCE) -> jax.Array:
    """Softmax attention over the union of the parts' keys.

    Each part makes its own unnormalised sum, and the sums are merged; so the cache is read where it
    lies instead of being copied next to the fresh keys.

    Args:
        queries: [B, T, N, H].
        parts: at least one of them must show each query some key.
        backend: for the parts that are spans.

    Returns:
        [B, T, N, H]
    """
    batch, num_queries, heads, head_dim = queries.shape
    kv_heads = parts[0].kv.keys.shape[1]
    groups = max(part.num_groups for part in parts)
    # Groups are an axis for all parts: to cut them out of one part would copy the queries.
    q = queries.reshape(batch, groups, -1, kv_heads, heads // kv_heads, head_dim)
    q = q.transpose(0, 3, 1, 4, 2, 5) * head_dim**-0.5  # [B, K, G, R, T / G, H], R = N / K
    sums = [_sum(q, part, backend) for part in parts]
    top = functools.reduce(jnp.maximum, (partial.top for partial in sums))
    scales = [jnp.exp(partial.top - top) for partial in sums]
    total = functools.reduce(jnp.add, map(jnp.multiply, scales, (s.total for s in sums)))
    values = functools.reduce(jnp.add, map(jnp.multiply, scales, (s.values for s in sums)))
    out = (values / total).astype(queries.dtype).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, num_queries, heads, head_dim)


class _PartialSum(NamedTuple):
    values: jax.Array  # [B, K, G, R, T / G, H], weighted by exp(score - top)
    total: jax.Array  # [B, K, G, R, T / G, 1], sum of the weights
    top: jax.Array  # likewise, largest score; where total is 1, the logarithm of the sum


def _sum(q: jax.Array, part: Part, backend: Backend) -> _PartialSum:
    if isinstance(part.mask, Span):
        if backend.name == "pallas":
            values, log_total = attend_to_spans(q, part.kv, part.mask, backend.mesh)
            return _PartialSum(values, jnp.ones_like(log_total), log_total)
        return _sum_of_spans(q, part.kv, part.mask)
    if part.num_groups > 1:
        by_group = (x.reshape(*x.shape[:2], part.num_groups, -1, x.shape[-1]) for x in part.kv)
        return _masked_sum(q, KeysValues(*by_group), part.mask)
    return _masked_sum(q, part.kv, _by_group(part.mask, q))


def _sum_of_spans(q: jax.Array, kv: KeysValues, span: Span) -> _PartialSum:
    """So many queries at a time that their scores stay small, in the backward pass too."""
    batch, _, groups, _, group_size, _ = q.shape
    num_queries, num_keys = groups * group_size, kv.keys.shape[2]
    num_chunks = -(-num_queries // _QUERIES_AT_ONCE)
    if num_chunks == 1:
        return _masked_sum(q, kv, _by_group(span.mask(num_keys), q))
    axis = 2 if groups > 1 else 4  # Groups stay whole.
    size = -(-q.shape[axis] // num_chunks)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, num_chunks * size - x.shape[axis])
        shape = (*x.shape[:axis], num_chunks, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, padding).reshape(shape), axis, 0)

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, q.shape[axis], axis=axis)

    @jax.checkpoint
    def chunk(q: jax.Array, first: jax.Array, end: jax.Array) -> _PartialSum:
        return _masked_sum(q, kv, Span(first, end).mask(num_keys))

    of_query = batch, 1, groups, 1, group_size
    spans = (jnp.broadcast_to(x, (batch, num_queries)).reshape(of_query) for x in span)
    chunks = tuple(map(split, (q, *spans)))
    return jax.tree.map(join, jax.lax.map(lambda of: chunk(*of), chunks))


def _by_group(mask: jax.Array | np.ndarray, q: jax.Array) -> jax.Array | np.ndarray:
    """[T, S] or [B, T, S], T may be 1 -> broadcasts to [B, K, G, R, T / G, S]."""
    *rows, num_queries, num_keys = mask.shape
    groups = q.shape[2] if num_queries > 1 else 1
    mask = mask.reshape(*rows, groups, 1, -1, num_keys)
    return mask[:, None] if rows else mask


def _masked_sum(q: jax.Array, kv: KeysValues, mask: jax.Array | np.ndarray) -> _PartialSum:
    """Of keys and values [B, K, S, H], or [B, K, G, S / G, H] of each group's own.

    The mask broadcasts to [B, K, G, R, T / G, S], or S / G.
    """
    # No axes are merged here, so that a mesh may spread K and R.
    keys = "BKGSH" if kv.keys.ndim == 5 else "BKSH"
    scores = jnp.einsum(
        f"BKGRTH,{keys}->BKGRTS",
        q,
        kv.keys,
        precision=precision(q.dtype),
        preferred_element_type=jnp.float32,
    )
    with jax.named_scope(StepPart.MASKS):
        scores = jnp.where(mask, scores, MASKED)
    # The maximum only keeps exp() in range; it cancels in the merge, and so does its gradient.
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    values = jnp.einsum(
        f"BKGRTS,{keys}->BKGRTH",
        weights.astype(q.dtype),
        kv.values,
        precision=precision(q.dtype),
        preferred_element_type=jnp.float32,
    )
    return _PartialSum(values, jnp.sum(weights, axis=-1, keepdims=True), top)
