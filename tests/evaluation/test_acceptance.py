"""Acceptance by rule: the closed form, and real decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.evaluation.acceptance import (
    RULES,
    acceptance_table,
    coupled_rate,
    measure_acceptance,
)

PROMPTS = [[1, 2, 3], [40, 50], [7], [9, 9, 9, 9]]


@pytest.fixture(scope="module")
def row(models):
    return measure_acceptance(
        models.target,
        models.draft,
        PROMPTS,
        domain="code",
        temperature=1.0,
        max_new_tokens=60,
    )


def test_coupled_rate_is_the_closed_form() -> None:
    p, q = np.random.default_rng(0).dirichlet(np.full(7, 0.3), size=(2, 50))
    p[:20, :3], q[10:30, 2:5] = 0, 0  # in p alone, in q alone, in both
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    p[40:] = q[40:]
    for one, other, found in zip(p, q, coupled_rate(jnp.asarray(p), jnp.asarray(q)), strict=True):
        both = np.flatnonzero((one > 0) & (other > 0))
        expected = sum(1 / np.maximum(one / one[i], other / other[i]).sum() for i in both)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(coupled_rate(jnp.eye(3)[0], jnp.eye(3)[1]), 0)


def test_coupled_rate_is_how_often_draws_agree() -> None:
    p, q = np.random.default_rng(1).dirichlet(np.ones(4), size=2)
    noise = jax.random.gumbel(jax.random.key(0), (20_000, 4))
    agree = jnp.argmax(jnp.log(p) + noise, -1) == jnp.argmax(jnp.log(q) + noise, -1)
    assert abs(jnp.mean(agree) - coupled_rate(jnp.asarray(p), jnp.asarray(q))) < 0.015


def test_what_was_accepted_is_what_the_rates_say(row) -> None:
    assert row.num_prompts == len(PROMPTS) and set(row.rates) == set(RULES)
    assert 0 < row.rates["match"] < row.rates["coupled"] < row.rates["rejection"] < 1
    # Of num_drafts judged drafts each is accepted with its rate, whatever came before it.
    assert row.num_drafts > 100
    spread = 4 * np.sqrt(0.25 / row.num_drafts)
    assert abs(row.num_accepted / row.num_drafts - row.rates["coupled"]) < spread


def test_greedy_rules_are_the_same(models) -> None:
    greedy = measure_acceptance(
        models.target,
        models.draft,
        PROMPTS,
        domain="code",
        temperature=0.0,
        max_new_tokens=12,
    )
    assert len(set(greedy.rates.values())) == len(set(greedy.tau.values())) == 1


def test_table_has_a_line_per_row(row) -> None:
    other = dataclasses.replace(row, domain="word_problems", temperature=0.25)
    table = acceptance_table([row, other])
    assert [cells[:2] for cells in table.rows] == [("code", "1"), ("word problems", "0.25")]
    assert table.rows[0][2] == f"{row.rates['coupled']:.3f}"
    assert len(table.columns) == len(table.rows[0])


def test_answers_without_a_step_are_refused(models) -> None:
    with pytest.raises(ValueError, match="max_new_tokens=1: no answer took a step"):
        measure_acceptance(
            models.target,
            models.draft,
            PROMPTS,
            domain="code",
            temperature=1.0,
            max_new_tokens=1,
        )
