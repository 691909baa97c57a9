"""Schedules and which parameters an optimizer treats how."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.training.config import OptimizerConfig
from flexdraft_jax.training.optimizer import learning_rate_schedule, make_optimizer

_CONFIG = OptimizerConfig(steps=100, batch_size=1, learning_rate=0.5, warmup_fraction=0.1)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedule_rises_to_the_peak_and_ends_at_zero(schedule: str) -> None:
    rates = learning_rate_schedule(dataclasses.replace(_CONFIG, schedule=schedule))
    values = np.array([float(rates(step)) for step in range(101)])
    assert values[0] == 0 and values[10] == pytest.approx(0.5)
    assert np.all(np.diff(values[:10]) > 0) and np.all(np.diff(values[10:]) <= 1e-7)
    assert values[100] == pytest.approx(0, abs=1e-7)
    # "wsd" holds its peak where cosine already falls.
    assert (values[60] == pytest.approx(0.5)) == (schedule == "wsd")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_only(optimizer: str) -> None:
    config = dataclasses.replace(_CONFIG, optimizer=optimizer, weight_decay=0.5)
    params = {"norm": {"scale": jnp.ones(4)}, "proj": {"kernel": jnp.ones((4, 4))}}
    transform = make_optimizer(config)
    state = transform.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):  # The first step has rate 0.
        updates, state = transform.update(zeros, state, params)
    assert np.all(np.asarray(updates["proj"]["kernel"]) < 0)
    assert not np.any(updates["norm"]["scale"])


def test_muon_takes_hidden_matrices_and_leaves_the_vocabulary_to_adam() -> None:
    config = dataclasses.replace(_CONFIG, optimizer="muon")
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    params = {"proj": {"kernel": gradient}, "embed": {"embedding": gradient}}
    transform = make_optimizer(config)
    state = transform.init(params)
    for _ in range(2):
        updates, state = transform.update(params, state, params)
    singular = {
        name: np.linalg.svd(np.asarray(leaf), compute_uv=False)
        for name, leaf in (
            ("proj", updates["proj"]["kernel"]),
            ("embed", updates["embed"]["embedding"]),
        )
    }
    # Muon's updates have nearly equal singular values, Adam's do not.
    assert singular["proj"].max() / singular["proj"].min() < 2.5
    assert singular["embed"].max() / singular["embed"].min() > 5
