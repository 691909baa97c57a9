"""Losses of a drafter: a mixture of divergences per slot, and a weight per slot.

All functions take slots 1..n-1 of mask groups (index 0 is slot 1) and are pure. Probabilities are
computed in float32. Throughout, p is the target's distribution and q the draft's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from flexdraft_jax.training.config import ObjectiveConfig


@struct.dataclass
class SlotScores:
    """What a step finds out about every slot; only `losses` can be differentiated.

    Attributes:
        losses: [B, A, n-1] float32, weighted, 0 at slots that are not counted.
        acceptance: [B, A, n-1] float32, the probability that the draft gives to the label.
        right: [B, A, n-1] bool, the draft's first choice is the label.
    """

    losses: jax.Array
    acceptance: jax.Array
    right: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log q(label) of every slot.

    Args:
        logits: [..., n-1, V].
        labels: [..., n-1].

    Returns:
        [..., n-1] nats.
    """
    return -label_log_probabilities(logits, labels)


def forward_kl(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """KL(p || q) of every slot.

    Args:
        logits: [..., n-1, V], of the draft.
        target_logits: [..., n-1, V].

    Returns:
        [..., n-1] nats; 0 where both distributions are equal.
    """
    log_p, log_q = _log_softmax(target_logits), _log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def total_variation(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """1/2 sum |p - q| of every slot: how often rejection sampling turns the draft down.

    Its gradient vanishes where p and q hardly overlap, so it finishes a drafter and does not start
    one.

    Args:
        logits: [..., n-1, V], of the draft.
        target_logits: [..., n-1, V].

    Returns:
        [..., n-1], 0 to 1.
    """
    p, q = jnp.exp(_log_softmax(target_logits)), jnp.exp(_log_softmax(logits))
    return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)


def negative_log_acceptance(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """-log sum min(p, q) of every slot; the sum is the chance that rejection sampling accepts.

    The gradient is that of the total variation, divided by the acceptance: it does not vanish from
    afar. For a p that is sure of one token it is the cross-entropy. ("LK Losses", arXiv 2602.23881)

    Args:
        logits: [..., n-1, V], of the draft.
        target_logits: [..., n-1, V].

    Returns:
        [..., n-1] nats; 0 where both distributions are equal.
    """
    # In logarithms, as a sum of minima can underflow to 0.
    smaller = jnp.minimum(_log_softmax(target_logits), _log_softmax(logits))
    return -jax.nn.logsumexp(smaller, axis=-1)


def lk_hybrid(logits: jax.Array, target_logits: jax.Array, eta: float) -> jax.Array:
    """Forward KL while a slot is mostly rejected, total variation once it is mostly accepted.

    s * KL + (1 - s) * TV with s = exp(-eta * acceptance), through which no gradient flows.
    ("LK Losses", arXiv 2602.23881, with eta = 3 as its best.)

    Args:
        logits: [..., n-1, V], of the draft.
        target_logits: [..., n-1, V].
        eta: 0 is forward KL; infinity is total variation.

    Returns:
        [..., n-1]
    """
    variation = total_variation(logits, target_logits)
    share = jnp.exp(-eta * (1 - jax.lax.stop_gradient(variation)))
    return share * forward_kl(logits, target_logits) + (1 - share) * variation


def label_log_probabilities(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log q(label): [..., n-1, V] and [..., n-1] -> [..., n-1]."""
    return jnp.take_along_axis(_log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def exponential_weights(num_slots: int, gamma: float) -> jax.Array:
    """exp(-(j - 1) / gamma) of slots j = 1..num_slots: early slots decide whether late ones count.

    Returns:
        [num_slots]
    """
    return jnp.exp(-jnp.arange(num_slots) / gamma)


def running_acceptance_weights(
    acceptance: jax.Array, counted: jax.Array, alpha: float
) -> jax.Array:
    """What a slot is worth: the drafts expected to be accepted from it on.

    w_j = sum over m >= j of the product over i <= m of (1 - alpha) * acceptance_i + alpha.

    A slot matters only if all before it are accepted, and its acceptance opens the way to all
    behind it. `alpha` takes a share of every acceptance for granted, or late slots would get no
    weight until early ones are good. No gradient flows through the weights.

    Args:
        acceptance: [..., n-1], the probability that the draft gives to the label.
        counted: [..., n-1] bool; a slot that is not counted ends its group.
        alpha: 0 trusts `acceptance`, 1 ignores it.

    Returns:
        [..., n-1], 0 at slots that are not counted.
    """
    factors = jnp.where(counted, (1 - alpha) * jax.lax.stop_gradient(acceptance) + alpha, 0.0)
    reached = jnp.cumprod(factors, axis=-1)
    return jnp.flip(jnp.cumsum(jnp.flip(reached, -1), axis=-1), -1)


def expected_tau(acceptance: jax.Array, counted: jax.Array) -> jax.Array:
    """Tokens per step that the draft's probabilities promise: 1 + sum_j prod_{i<=j} acceptance_i.

    Args:
        acceptance: [..., n-1], the probability that the draft gives to the label.
        counted: [..., n-1] bool; a slot that is not counted ends its group.

    Returns:
        [] float32, the mean over groups with a counted slot; 1 where there is none.
    """
    reached = jnp.cumprod(jnp.where(counted, acceptance, 0.0), axis=-1)
    return 1 + jnp.sum(reached) / jnp.maximum(jnp.sum(jnp.any(counted, axis=-1)), 1)


def slot_losses(
    config: ObjectiveConfig, logits: jax.Array, labels: jax.Array, target_logits: jax.Array
) -> jax.Array:
    """The configured mixture of divergences, [..., n-1]; shapes as in `score_slots`."""
    terms = config.terms
    total = jnp.zeros(labels.shape)
    if terms.cross_entropy:
        total += terms.cross_entropy * cross_entropy(logits, labels)
    if terms.forward_kl:
        total += terms.forward_kl * forward_kl(logits, target_logits)
    if terms.total_variation:
        total += terms.total_variation * total_variation(logits, target_logits)
    if terms.negative_log_acceptance:
        total += terms.negative_log_acceptance * negative_log_acceptance(logits, target_logits)
    if terms.lk_hybrid:
        total += terms.lk_hybrid * lk_hybrid(logits, target_logits, config.eta)
    return total


def slot_weights(config: ObjectiveConfig, acceptance: jax.Array, counted: jax.Array) -> jax.Array:
    """The configured weights; broadcasts to [..., n-1]."""
    if config.slot_weights == "running_acceptance":
        return running_acceptance_weights(acceptance, counted, config.alpha)
    if config.slot_weights == "exponential":
        return exponential_weights(acceptance.shape[-1], config.gamma)
    return jnp.ones(())


def score_slots(
    config: ObjectiveConfig,
    logits: jax.Array,
    labels: jax.Array,
    target_logits: jax.Array,
    counted: jax.Array,
) -> SlotScores:
    """Weighted losses of all slots, and how good their drafts are.

    Args:
        config: which divergences and which weights.
        logits: [B, A, n-1, V], calibrated, of the draft.
        labels: [B, A, n-1].
        target_logits: [B, A, n-1, V]; what the target itself would predict in these places.
        counted: [B, A, n-1] bool.
    """
    acceptance = jax.lax.stop_gradient(jnp.exp(label_log_probabilities(logits, labels)))
    losses = slot_losses(config, logits, labels, target_logits)
    weighted = jnp.where(counted, losses * slot_weights(config, acceptance, counted), 0.0)
    return SlotScores(weighted, acceptance, jnp.argmax(logits, axis=-1) == labels)


def mean_loss(losses: jax.Array, counted: jax.Array) -> jax.Array:
    """The weighted losses [B, A, n-1] summed up and divided by the number of counted slots, []."""
    return jnp.sum(losses) / jnp.maximum(jnp.sum(counted), 1)


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))
