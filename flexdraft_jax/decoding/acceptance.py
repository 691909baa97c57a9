"""What the target makes of a candidate block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Verdict(NamedTuple):
    """Outcome of one verification.

    Attributes:
        num_accepted: [B] a, accepted drafts, the bonus not counted.
        bonus: [B] the target's own token after them.
    """

    num_accepted: jax.Array
    bonus: jax.Array


def accept_greedy(predicted: jax.Array, candidates: jax.Array, verify_length: jax.Array) -> Verdict:
    """Accepts drafts as long as each is the target's own greedy choice.

    Args:
        predicted: [B, C] the target's greedy token after each candidate.
        candidates: [B, C]; slot 0 is the last bonus, slots 1.. are drafts.
        verify_length: [B] v < C; drafts behind it are not looked at. 0 accepts none.
    """
    num_drafts = candidates.shape[1] - 1
    agrees = (predicted[:, :-1] == candidates[:, 1:]) & (
        jnp.arange(num_drafts) < verify_length[:, None]
    )  # [B, C - 1]
    num_accepted = jnp.sum(jnp.cumprod(agrees, axis=1, dtype=jnp.int32), axis=1)
    bonus = jnp.take_along_axis(predicted, num_accepted[:, None], axis=1)[:, 0]
    return Verdict(num_accepted, bonus)
