"""Tokens that rounding decides."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import flexdraft_jax as fd
from flexdraft_jax.evaluation.near_ties import near_ties
from flexdraft_jax.models.target import TargetModel


@pytest.fixture(scope="module")
def rounded(models) -> fd.Target:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), models.target.params)
    return dataclasses.replace(models.target, params=params)


def test_a_near_tie_is_a_gap_of_one_rounding_step(rounded) -> None:
    prompt, answer = [1, 2, 3], list(range(4, 24))
    tokens = jnp.array([prompt + answer + [0] * 9])  # To the bucket of 32.
    model = TargetModel(rounded.config, rounded.dtype)
    logits = jax.jit(model.apply)({"params": rounded.params}, tokens)[0, len(prompt) - 1 :]
    first, second = jnp.sort(logits, axis=-1)[:, :-3:-1].T
    found = near_ties(rounded, prompt, answer)
    assert len(found) == len(answer)
    shares = (first - second) / jnp.abs(first)
    assert any(found) and not all(found)
    assert found == (shares[: len(answer)] <= 1 / 128).tolist()


def test_equal_logits_are_a_tie(rounded) -> None:
    """All of them are, if the embedding says nothing; in float32 too."""
    nothing = jax.tree.map(jnp.zeros_like, rounded.params)
    for dtype in (jnp.bfloat16, jnp.float32):
        params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), nothing)
        assert near_ties(dataclasses.replace(rounded, params=params), [1], [2, 3]) == [True] * 2
