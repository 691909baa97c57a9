"""From the confidence of the drafts to how many of them the next step verifies."""

import jax
import jax.numpy as jnp

PRUNING_STRATEGIES = ("cumulative_product", "min_confidence")


def slot_confidence(logits: jax.Array) -> jax.Array:
    """Largest probability of each slot, from calibrated logits at temperature 1.

    Args:
        logits: [..., V] float32.

    Returns:
        [...] float32
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    return 1.0 / jnp.sum(jnp.exp(logits - top), axis=-1)


def choose_verify_length(
    confidence: jax.Array, threshold: jax.Array, pruning_strategy: str
) -> jax.Array:
    """How many drafts are worth verifying (FlexDraft paper, confidence-based verify length).

    Args:
        confidence: [B, n - 1] of the drafts, in order.
        threshold: [B]; 0 keeps all of them.
        pruning_strategy: "cumulative_product" keeps drafts while the product of the confidences
            so far is at least the threshold; "min_confidence" while each of them is.

    Returns:
        [B] v, between 1 and n - 1.
    """
    running = jnp.cumprod(confidence, axis=1)
    if pruning_strategy == "min_confidence":
        running = jax.lax.cummin(confidence, axis=1)
    kept = jnp.sum(running >= threshold[:, None], axis=1, dtype=jnp.int32)
    return jnp.clip(kept, 1, confidence.shape[1])


def survival_curve(confidence: jax.Array, verify_length: jax.Array) -> jax.Array:
    """Probability, as confidence has it, that a draft and all before it are accepted.

    Args:
        confidence: [B, n - 1] of the drafts, in order.
        verify_length: [B] v; drafts behind it will not be verified, and have 0.

    Returns:
        [B, n - 1]
    """
    running = jnp.cumprod(confidence, axis=1)
    verified = jnp.arange(confidence.shape[1]) < verify_length[:, None]
    # Infinite logits have a confidence of NaN, which is no promise.
    return jnp.where(verified & (running > 0), running, 0.0)
