"""Every part of the drafter's loss against a plain NumPy reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.training import objectives
from flexdraft_jax.training.config import ObjectiveConfig, ObjectiveTerms

_GROUPS, _SLOTS, _VOCAB = 5, 3, 11
_ETA = 2.0


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


def _divergence(case: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name == "cross_entropy":
        return -np.log(_label_probabilities(case))
    p, q = _softmax(case["target_logits"]), _softmax(case["logits"])
    kl = (p * np.log(p / q)).sum(-1)
    overlap = np.minimum(p, q).sum(-1)
    if name == "lk_hybrid":
        share = np.exp(-_ETA * overlap)
        return share * kl + (1 - share) * (1 - overlap)
    return {
        "forward_kl": kl,
        "total_variation": np.abs(p - q).sum(-1) / 2,
        "negative_log_acceptance": -np.log(overlap),
    }[name]


def _only(**terms: float) -> ObjectiveTerms:
    return ObjectiveTerms(**{"forward_kl": 0.0, **terms})


def _loss(config: ObjectiveConfig, case: dict[str, np.ndarray]) -> jax.Array:
    scores = objectives.score_slots(
        config, case["logits"], case["labels"], case["target_logits"], case["counted"]
    )
    return objectives.mean_loss(scores.losses, case["counted"])


@pytest.mark.parametrize("slot_weights", ["uniform", "exponential", "running_acceptance"])
@pytest.mark.parametrize("term", [field.name for field in dataclasses.fields(ObjectiveTerms)])
def test_loss_equals_the_reference(
    case: dict[str, np.ndarray], term: str, slot_weights: str
) -> None:
    config = ObjectiveConfig(_only(**{term: 1.0}), slot_weights, gamma=2.5, alpha=0.3, eta=_ETA)
    weights = {
        "uniform": np.ones(_SLOTS),
        "exponential": np.exp(-np.arange(_SLOTS) / 2.5),
        "running_acceptance": _weights(_label_probabilities(case), case["counted"], 0.3),
    }[slot_weights]
    losses = _divergence(case, term) * weights * case["counted"]
    expected = losses.sum() / case["counted"].sum()
    np.testing.assert_allclose(_loss(config, case), expected, rtol=2e-5)


def test_terms_add_up(case: dict[str, np.ndarray]) -> None:
    shares = {"cross_entropy": 0.1, "total_variation": 0.9}
    parts = [
        share * _loss(ObjectiveConfig(_only(**{name: 1.0})), case) for name, share in shares.items()
    ]
    mixture = _loss(ObjectiveConfig(_only(**shares)), case)
    np.testing.assert_allclose(mixture, sum(parts), rtol=1e-6)


def test_a_negative_term_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective.terms.cross_entropy=-1: must be at least 0"):
        ObjectiveTerms(cross_entropy=-1)


_DIVERGENCES = {
    "forward_kl": objectives.forward_kl,
    "total_variation": objectives.total_variation,
    "negative_log_acceptance": objectives.negative_log_acceptance,
    "lk_hybrid": lambda logits, target: objectives.lk_hybrid(logits, target, _ETA),
}


@pytest.mark.parametrize("name", _DIVERGENCES)
def test_a_divergence_from_itself_is_zero(case: dict[str, np.ndarray], name: str) -> None:
    logits = case["logits"]
    np.testing.assert_allclose(_DIVERGENCES[name](logits, logits), 0, atol=1e-6)


def test_the_pull_of_log_acceptance_is_that_of_total_variation_over_the_acceptance(
    case: dict[str, np.ndarray],
) -> None:
    logits, target = case["logits"], case["target_logits"]
    pull = jax.grad(lambda x: objectives.negative_log_acceptance(x, target).sum())(logits)
    weak = jax.grad(lambda x: objectives.total_variation(x, target).sum())(logits)
    acceptance = 1 - objectives.total_variation(logits, target)
    np.testing.assert_allclose(pull, weak / acceptance[..., None], atol=1e-5)


def test_log_acceptance_pulls_even_where_nothing_overlaps() -> None:
    logits, target = jnp.array([0.0, 400.0, 0.0]), jnp.array([500.0, 0.0, 0.0])
    value, pull = jax.value_and_grad(objectives.negative_log_acceptance)(logits, target)
    np.testing.assert_allclose(value, 400, rtol=1e-6)
    np.testing.assert_allclose(pull, [-1, 1, 0], atol=1e-6)
    assert not np.any(jax.grad(objectives.total_variation)(logits, target))


def test_the_hybrid_moves_no_gradient_through_its_share(case: dict[str, np.ndarray]) -> None:
    logits, target = case["logits"], case["target_logits"]
    share = jnp.exp(-_ETA * (1 - objectives.total_variation(logits, target)))

    def fixed(x: jax.Array) -> jax.Array:
        kl, variation = objectives.forward_kl(x, target), objectives.total_variation(x, target)
        return jnp.sum(share * kl + (1 - share) * variation)

    found = jax.grad(lambda x: objectives.lk_hybrid(x, target, _ETA).sum())(logits)
    np.testing.assert_allclose(found, jax.grad(fixed)(logits), atol=1e-6)


def test_expected_tau_is_the_mean_over_groups_with_a_slot(case: dict[str, np.ndarray]) -> None:
    acceptance = _label_probabilities(case)
    taus = [
        1 + sum(np.prod(acceptance[0, group, : j + 1]) for j in range(slots))
        for group, slots in enumerate([0, 1, 2, 3, 3])
    ]
    found = objectives.expected_tau(jnp.asarray(acceptance), case["counted"])
    np.testing.assert_allclose(found, np.mean(taus[1:]), rtol=1e-6)


def test_kl_to_itself_pulls_nowhere(case: dict[str, np.ndarray]) -> None:
    logits = jnp.asarray(case["logits"])
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
    assert _loss(ObjectiveConfig(), {**case, "counted": nothing}) == 0
    assert objectives.expected_tau(jnp.ones(nothing.shape), nothing) == 1
