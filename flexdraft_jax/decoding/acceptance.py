"""What the target makes of a candidate block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.sampling import Purpose, RowSampling, draw_from, uniform


class Verdict(NamedTuple):
    """Outcome of one verification.

    Attributes:
        num_accepted: [B] a, accepted drafts, the bonus not counted.
        bonus: [B] the target's own token after them.
    """

    num_accepted: jax.Array
    bonus: jax.Array


def accept_matching(
    predicted: jax.Array, candidates: jax.Array, verify_length: jax.Array
) -> Verdict:
    """Accepts drafts as long as each is the target's own choice: greedy, and the coupled rule.

    Args:
        predicted: [B, C] the target's token after each candidate.
        candidates: [B, C]; slot 0 is the last bonus, slots 1.. are drafts.
        verify_length: [B] v < C; drafts behind it are not looked at. 0 accepts none.
    """
    num_accepted = _leading(predicted[:, :-1] == candidates[:, 1:], verify_length)
    return Verdict(num_accepted, _at(predicted, num_accepted))


def accept_by_rejection(
    target: jax.Array,
    draft: jax.Array,
    candidates: jax.Array,
    verify_length: jax.Array,
    sampling: RowSampling,
    positions: jax.Array,
) -> Verdict:
    """Accepts draft x with probability min(1, p(x) / q(x)); what comes instead makes up for it.

    The bonus behind a rejected draft is drawn from max(p - q, 0), normalised, and behind the last
    verified one from p. So every token has the law p. ("Fast Inference from Transformers via
    Speculative Decoding", arXiv 2211.17192, appendix A.1)

    Args:
        target: [B, C, V] p after each candidate.
        draft: [B, C - 1, V] q that each draft was drawn from.
        candidates: [B, C]; slot 0 is the last bonus, slots 1.. are drafts.
        verify_length: [B] v < C; drafts behind it are not looked at. It may depend on the q's and
            on what came before the block, never on the block's drafts.
        sampling: seeds of the rows.
        positions: [B, C], where in its row the token after each candidate is to stand.
    """
    drafts = candidates[:, 1:, None]
    p = jnp.take_along_axis(target[:, :-1], drafts, axis=2)[..., 0]
    q = jnp.take_along_axis(draft, drafts, axis=2)[..., 0]
    accepted = uniform(sampling, positions[:, :-1], Purpose.ACCEPT) * q < p  # [B, C - 1]
    num_accepted = _leading(accepted, verify_length)

    # q is 0 where no draft was verified, so that max(p - q, 0) is p.
    padded = jnp.pad(draft, ((0, 0), (0, 1), (0, 0)))
    rejected = num_accepted < verify_length
    p = jnp.take_along_axis(target, num_accepted[:, None, None], axis=1)
    q = jnp.take_along_axis(padded, num_accepted[:, None, None], axis=1)
    residual = jnp.maximum(p - jnp.where(rejected[:, None, None], q, 0.0), 0.0)
    # Rounding can leave nothing of p - q where both are the same.
    residual = jnp.where(jnp.sum(residual, axis=-1, keepdims=True) > 0, residual, p)
    place = jnp.take_along_axis(positions, num_accepted[:, None], axis=1)
    return Verdict(num_accepted, draw_from(residual, sampling, place, Purpose.TOKEN)[:, 0])


def _leading(accepted: jax.Array, verify_length: jax.Array) -> jax.Array:
    """How many of the first v entries [B, C - 1] hold before the first that does not, [B]."""
    accepted &= jnp.arange(accepted.shape[1]) < verify_length[:, None]
    return jnp.sum(jnp.cumprod(accepted, axis=1, dtype=jnp.int32), axis=1)


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
