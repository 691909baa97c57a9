"""Who sees whom. A mask is boolean, True where the query (row) sees the key (column).

Where the keys that a query sees lie side by side, a `Span` says it in two numbers.

One decoding step has three kinds of keys, and each has its mask:

    queries \\ keys   cache prefix      candidates 0..v    mask groups 0..v
    candidate i      slots < length    j <= i             never
    group k, slot j  slots < length    i <= k             its own group, both ways

In a sliding-window layer a query at position p sees no key at a position <= p - window.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flexdraft_jax.models.scopes import StepPart

_Array = TypeVar("_Array", jax.Array, np.ndarray)

# Score of a key that is not seen. Finite, so that a part of the keys that shows nothing gets weight
# exp(MASKED - max) = 0 and no NaN.
MASKED = -1e30


class Span(NamedTuple):
    """Each query sees the keys from `first` on and before `end`: none, if `end` is not larger.

    Attributes:
        first: [B, T], or [B, 1] where all queries see the same.
        end: [B, T] or [B, 1], at most the number of keys.
    """

    first: jax.Array
    end: jax.Array

    @jax.named_scope(StepPart.MASKS)
    def mask(self, num_keys: int) -> jax.Array:
        """The same as a mask [B, T, num_keys]."""
        keys = jnp.arange(num_keys)
        return (keys >= self.first[..., None]) & (keys < self.end[..., None])


def prefix_span(length: jax.Array, positions: jax.Array, window: int | None) -> Span:
    """Queries against cache slots; slot s holds the token at position s.

    Args:
        length: [B] tokens in the cache.
        positions: [B, T] of the queries, in tokens.
        window: of this layer, or None.
    """
    end = length[:, None]
    if window is None:
        return Span(jnp.zeros_like(end), end)
    return Span(jnp.maximum(positions - window + 1, 0), jnp.broadcast_to(end, positions.shape))


def segment_span(segment_ids: jax.Array, window: int | None) -> Span:
    """`segment_mask` where each document lies in one piece.

    Args:
        segment_ids: [B, T], which document a token belongs to.
        window: of this layer, or None.
    """
    place = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    first = _segment_start(segment_ids)
    if window is not None:
        first = jnp.maximum(first, place - window + 1)
    return Span(first, place + 1)


def anchor_span(
    segment_ids: jax.Array, anchors: jax.Array, block_size: int, window: int | None
) -> Span:
    """`anchor_mask` where each document lies in one piece: queries [B, A * n].

    Args:
        segment_ids: [B, T], which document a token belongs to.
        anchors: [B, A] indices into T.
        block_size: n.
        window: of this layer, or None.
    """
    batch, num_anchors = anchors.shape
    shape = (batch, num_anchors, block_size)
    first = jnp.take_along_axis(_segment_start(segment_ids), anchors, axis=1)[..., None]
    if window is not None:
        first = jnp.maximum(first, anchors[..., None] + 2 + jnp.arange(block_size) - window)
    end = jnp.broadcast_to(anchors[..., None] + 1, shape)
    return Span(jnp.broadcast_to(first, shape).reshape(batch, -1), end.reshape(batch, -1))


def _segment_start(segment_ids: jax.Array) -> jax.Array:
    """Index of the first token of each token's document: [B, T] -> [B, T]."""
    begins = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    # At index 0 it does not matter which.
    return jax.lax.cummax(jnp.where(begins, jnp.arange(segment_ids.shape[1]), 0), axis=1)


def block_mask(num_candidates: int, window: int | None) -> np.ndarray:
    """Candidates against candidates: causal.

    >>> block_mask(3, None).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])

    Returns:
        [C, C]
    """
    offset = np.arange(num_candidates)
    distance = offset[:, None] - offset
    return (distance >= 0) & _within(distance, window)


def group_block_mask(
    num_groups: int, block_size: int, num_candidates: int, window: int | None
) -> np.ndarray:
    """Mask tokens of groups 0..G-1 against candidates: group k sees candidates 0..k.

    Group k's slot j lies at offset k + 1 + j from candidate 0. For G = C = 3 and n = 2, two rows to
    a group:

    >>> group_block_mask(3, 2, 3, None).astype(int)
    array([[1, 0, 0],
           [1, 0, 0],
           [1, 1, 0],
           [1, 1, 0],
           [1, 1, 1],
           [1, 1, 1]])

    Returns:
        [G * n, C]
    """
    group = np.repeat(np.arange(num_groups), block_size)
    offset = group + 1 + np.tile(np.arange(block_size), num_groups)
    candidate = np.arange(num_candidates)
    return (candidate <= group[:, None]) & _within(offset[:, None] - candidate, window)


def own_group_mask(block_size: int, window: int | None) -> np.ndarray:
    """Mask tokens of one group against each other: both ways, all ones without a window.

    Returns:
        [n, n]
    """
    offset = np.arange(block_size)
    return _within(offset[:, None] - offset, window)


def segment_mask(segment_ids: jax.Array, positions: jax.Array, window: int | None) -> jax.Array:
    """Packed documents: causal within a document, nothing across documents.

    Args:
        segment_ids: [B, T], which document a token belongs to.
        positions: [B, T], counted from the start of its document.
        window: of this layer, or None.

    Returns:
        [B, T, T]
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    distance = positions[:, :, None] - positions[:, None, :]
    return same & (distance >= 0) & _within(distance, window)


def anchor_mask(
    segment_ids: jax.Array,
    positions: jax.Array,
    anchors: jax.Array,
    block_size: int,
    window: int | None,
) -> jax.Array:
    """Training: mask tokens of group a against the clean tokens up to its anchor.

    Args:
        segment_ids: [B, T], which document a token belongs to.
        positions: [B, T], counted from the start of its document.
        anchors: [B, A] indices into T.
        block_size: n.
        window: of this layer, or None.

    Returns:
        [B, A * n, T]
    """
    segment = jnp.take_along_axis(segment_ids, anchors, axis=1)  # [B, A]
    position = jnp.take_along_axis(positions, anchors, axis=1)
    seen = (segment[:, :, None] == segment_ids[:, None, :]) & (
        positions[:, None, :] <= position[:, :, None]
    )  # [B, A, T]
    own = position[:, :, None] + 1 + jnp.arange(block_size)  # [B, A, n]
    distance = own[:, :, :, None] - positions[:, None, None, :]  # [B, A, n, T]
    mask = seen[:, :, None, :] & _within(distance, window)
    return mask.reshape(mask.shape[0], -1, mask.shape[-1])


def _within(distance: _Array, window: int | None) -> _Array:
    """Query position minus key position, held against the window."""
    return distance < window if window is not None else distance == distance
