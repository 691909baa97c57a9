"""Where mask groups stand in packed rows, and which tokens their slots should predict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from flexdraft_jax.training.rows import Rows


@struct.dataclass
class Groups:
    """Mask groups of a batch of packed rows, and their labels.

    Group a of a row lies behind token `anchors[a]` of that row: its slot j predicts the token j + 1
    places further on. Slot 0 is the bonus, which the target gives by itself, so it is never
    counted.

    Attributes:
        anchors: [B, A] int32, indices into T; 0 where a row has too few places.
        labels: [B, A, n] int32, the tokens at the slots' places, whether counted or not.
        counted: [B, A, n] bool, slots that enter the loss.
    """

    anchors: jax.Array
    labels: jax.Array
    counted: jax.Array


def sample_groups(rng: jax.Array, rows: Rows, *, num_anchors: int, block_size: int) -> Groups:
    """Draws different anchors, document by document, and looks up their labels.

    A place is fit if the two tokens after it, the bonus and the first draft, belong to a response
    in the same document. The place itself may be the last token of a prompt, as after prefill.

    Every draw weighs the places that are left by 1 / the fit places of their document: the first
    anchor falls into each document equally often, however short it is, and a document whose places
    are used up leaves the rest to the others.

    Args:
        rng: a `jax.random.key`.
        rows: [B, T] packed documents.
        num_anchors: A, at most T; a row with fewer fit places leaves the rest uncounted.
        block_size: n.

    Raises:
        ValueError: `num_anchors` is not in 1..T.
    """
    length = rows.tokens.shape[1]
    if not 1 <= num_anchors <= length:
        raise ValueError(
            f"anchors={num_anchors}: must be between 1 and the length of a row, {length}"
        )
    places = jnp.broadcast_to(jnp.arange(length), rows.tokens.shape)
    fit = _counted(places, rows, 2)[..., 1]  # [B, T]
    # The largest of log(weight) + Gumbel noise are a draw without replacement by these weights.
    noise = jax.random.gumbel(rng, places.shape)
    scores = jnp.where(fit, noise - jnp.log(_fit_in_document(rows.segment_ids, fit)), -jnp.inf)
    best, anchors = jax.lax.top_k(scores, num_anchors)  # [B, A]
    found = jnp.isfinite(best)
    anchors = jnp.where(found, anchors, 0)
    counted = _counted(anchors, rows, block_size)
    counted &= found[..., None] & (jnp.arange(block_size) > 0)
    labels, _ = _after(rows.tokens, anchors, block_size)
    return Groups(anchors, labels, counted)


def _fit_in_document(segment_ids: jax.Array, fit: jax.Array) -> jax.Array:
    """How many fit places the document of each token has: [B, T] ids, [B, T] bool -> [B, T]."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]  # [B, T, T], fused into the sum
    return jnp.sum(same & fit[:, None, :], axis=-1)


def _counted(anchors: jax.Array, rows: Rows, block_size: int) -> jax.Array:
    """Slots whose token, and every one before it in the group, continues the same response.

    Args:
        anchors: [B, A].
        rows: [B, T].
        block_size: n.

    Returns:
        [B, A, n] bool
    """
    segments, inside = _after(rows.segment_ids, anchors, block_size)
    own = jnp.take_along_axis(rows.segment_ids, anchors, axis=1)[..., None]  # [B, A, 1]
    response, _ = _after(rows.response_mask, anchors, block_size)
    # Nothing is decoded behind the end of a response, so nothing is learnt there.
    return jnp.cumprod(inside & (segments == own) & response, axis=-1).astype(bool)


def _after(values: jax.Array, anchors: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """values [B, T] at the `count` places after each anchor [B, A], and which lie in the row."""
    places = anchors[..., None] + 1 + jnp.arange(count)  # [B, A, count]
    flat = jnp.minimum(places, values.shape[1] - 1).reshape(anchors.shape[0], -1)
    found = jnp.take_along_axis(values, flat, axis=1).reshape(places.shape)
    return found, places < values.shape[1]
