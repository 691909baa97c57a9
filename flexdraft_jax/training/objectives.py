"""Losses of a drafter: a divergence per slot, and a weight per slot.

All functions take slots 1..n-1 of mask groups (index 0 is slot 1) and are pure. Probabilities are
computed in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flexdraft_jax.training.config import ObjectiveConfig


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
    """KL(p || q) of every slot, p being the target's distribution and q the draft's.

    Args:
        logits: [..., n-1, V], of the draft.
        target_logits: [..., n-1, V].

    Returns:
        [..., n-1] nats; 0 where both distributions are equal.
    """
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_p = jax.nn.log_softmax(target_logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def label_log_probabilities(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log q(label): [..., n-1, V] and [..., n-1] -> [..., n-1]."""
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]


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


def draft_loss(
    config: ObjectiveConfig,
    logits: jax.Array,
    labels: jax.Array,
    target_logits: jax.Array,
    counted: jax.Array,
) -> jax.Array:
    """The configured loss, a weighted sum over counted slots divided by their number.

    Args:
        config: which divergence and which weights.
        logits: [B, A, n-1, V], calibrated, of the draft.
        labels: [B, A, n-1].
        target_logits: [B, A, n-1, V]; what the target itself would predict in these places.
        counted: [B, A, n-1] bool.

    Returns:
        [] float32
    """
    if config.divergence == "forward_kl":
        losses = forward_kl(logits, target_logits)
    else:
        losses = cross_entropy(logits, labels)
    if config.slot_weights == "running_acceptance":
        acceptance = jnp.exp(label_log_probabilities(logits, labels))
        weights = running_acceptance_weights(acceptance, counted, config.alpha)
    elif config.slot_weights == "exponential":
        weights = exponential_weights(logits.shape[-2], config.gamma)
    else:
        weights = jnp.ones(())
    return jnp.sum(losses * weights * counted) / jnp.maximum(jnp.sum(counted), 1)
