"""Every part of the drafter's loss against a plain NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.training import objectives
from flexdraft_jax.training.config import ObjectiveConfig

_GROUPS, _SLOTS, _VOCAB = 5, 3, 11


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (1, _GROUPS, _SLOTS)
    return {
        "logits": rng.normal(size=(*shape, _VOCAB)).astype(np.float32) * 3,
        "target_logits": rng.normal(size=(*shape, _VOCAB)).astype(np.float32) * 3,
        "labels": rng.integers(0, _VOCAB, shape).astype(np.int32),
        # Groups that end after 0, 1, 2 and 3 slots.
        "counted": np.arange(_SLOTS) < np.array([0, 1, 2, 3, 3])[None, :, None],
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return wide / wide.sum(-1, keepdims=True)


def _label_probabilities(case: dict[str, np.ndarray]) -> np.ndarray:
    q = _softmax(case["logits"])
    return np.take_along_axis(q, case["labels"][..., None], -1)[..., 0]


def _weights(acceptance: np.ndarray, counted: np.ndarray, alpha: float) -> np.ndarray:
    weights = np.zeros(acceptance.shape)
    for index in np.ndindex(acceptance.shape[:-1]):
        for j in range(_SLOTS):
            for m in range(j, _SLOTS):
                product = 1.0
                for i in range(m + 1):
                    product *= ((1 - alpha) * acceptance[index][i] + alpha) * counted[index][i]
                weights[index][j] += product
    return weights


def _divergences(case: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name == "cross_entropy":
        return -np.log(_label_probabilities(case))
    p, q = _softmax(case["target_logits"]), _softmax(case["logits"])
    return (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("divergence", ["cross_entropy", "forward_kl"])
@pytest.mark.parametrize("slot_weights", ["uniform", "exponential", "running_acceptance"])
def test_loss_equals_the_reference(
    case: dict[str, np.ndarray], divergence: str, slot_weights: str
) -> None:
    config = ObjectiveConfig(divergence, slot_weights, gamma=2.5, alpha=0.3)
    weights = {
        "uniform": np.ones(_SLOTS),
        "exponential": np.exp(-np.arange(_SLOTS) / 2.5),
        "running_acceptance": _weights(_label_probabilities(case), case["counted"], 0.3),
    }[slot_weights]
    losses = _divergences(case, divergence) * weights * case["counted"]
    expected = losses.sum() / case["counted"].sum()
    found = objectives.draft_loss(
        config, case["logits"], case["labels"], case["target_logits"], case["counted"]
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_kl_to_itself_is_zero_and_pulls_nowhere(case: dict[str, np.ndarray]) -> None:
    logits = jnp.asarray(case["logits"])
    np.testing.assert_allclose(objectives.forward_kl(logits, logits), 0, atol=1e-6)
    gradient = jax.grad(lambda x: objectives.forward_kl(x, logits).sum())(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_no_gradient_flows_through_running_acceptance_weights() -> None:
    counted = jnp.ones((2, _SLOTS), bool)

    def total(acceptance: jax.Array) -> jax.Array:
        return objectives.running_acceptance_weights(acceptance, counted, 0.5).sum()

    assert not np.any(jax.grad(total)(jnp.full((2, _SLOTS), 0.4)))


def test_a_sure_draft_is_worth_what_lies_behind_it() -> None:
    weights = objectives.running_acceptance_weights(
        jnp.ones((1, 4)), jnp.ones((1, 4), bool), alpha=0.0
    )
    np.testing.assert_array_equal(weights, [[4, 3, 2, 1]])


def test_nothing_counted_is_no_loss(case: dict[str, np.ndarray]) -> None:
    nothing = np.zeros_like(case["counted"])
    loss = objectives.draft_loss(
        ObjectiveConfig(), case["logits"], case["labels"], case["target_logits"], nothing
    )
    assert loss == 0
