"""Flex beside the best fixed schedule, counted and not timed.

The steps that it chooses are taken on recorded drafts (see record_drafts.py), at given costs. What
a machine makes of it is for `infer/benchmark.py` to say.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.decoding.costs import Variant
from flexdraft_jax.decoding.flex import (
    FlexCosts,
    choose_variant,
    empty_history,
    note_block,
    note_verdict,
)

RECORDED = np.load(pathlib.Path(__file__).parent / "recorded_drafts.npz")
VARIANTS = tuple(Variant("ar" if i == 0 else "sequential", v) for i, v in enumerate((0, 0, 3, 7)))
# In plain steps, as measured on two cores; a draft pass is the second less one.
COSTS = {1: (1.0, 2.28, 3.0, 3.3), 8: (1.0, 2.39, 3.29, 4.29), 32: (1.0, 2.27, 2.89, 3.7)}
BUDGET = RECORDED["code_survival"].shape[1]


def batches(domain: str, size: int) -> list[jax.Array]:
    """Lengths [X, B], survival [X, B, T, n - 1] and accepted [X, B, T] of X batches.

    A batch that is larger than the prompts are many repeats them.
    """
    arrays = [RECORDED[f"{domain}_{part}"] for part in ("length", "survival", "accepted")]
    picked = np.arange(max(len(arrays[0]), size)).reshape(-1, size) % len(arrays[0])
    return [jnp.asarray(array[picked], array.dtype.kind + "4") for array in arrays]


def flex_time(length, survival, accepted, costs, believed):
    """Of a batch whose rows wait for the last; [B], [B, T, n - 1], [B, T] and twice [variants]."""
    size, drafts = length.shape[0], survival.shape[-1]
    flex_costs = FlexCosts(believed, jnp.asarray(False))

    def block_at(t):
        return [x[jnp.arange(size), jnp.minimum(t, BUDGET - 1)] for x in (survival, accepted)]

    def step(carry):
        time, t, curve, will_accept, history = carry
        active = t < length
        remaining = jnp.where(active, BUDGET - t, 0)
        index = choose_variant(VARIANTS, flex_costs, history, curve, remaining)
        held = jnp.array([variant.num_drafts for variant in VARIANTS])[index]
        verified = jnp.where(jnp.any(curve > 0, axis=1) & active, held, 0)
        a = jnp.minimum(will_accept, verified)
        after = note_verdict(history, curve, verified, a)
        t = t + jnp.where(active, a + 1, 0)
        next_curve, next_accept = block_at(t)
        has_block = index > 0
        after = jax.tree.map(
            lambda new, old: jnp.where(has_block, new, old), note_block(after, next_curve), after
        )
        return time + costs[index], t, next_curve * has_block, next_accept * has_block, after

    t = jnp.ones(size, jnp.int32)  # Reading the prompt gives the first token, and a block.
    curve, will_accept = block_at(t)
    history = note_block(empty_history(size, drafts + 1), curve)
    first = costs[1] - costs[0]
    carry = first, t, curve, will_accept, history
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] < length), step, carry)[0]


def sequential_steps(length: np.ndarray, accepted: np.ndarray) -> int:
    """Until the last row has ended, every draft verified."""
    t, steps = np.ones(len(length), int), 0
    while np.any(t < length):
        reached = accepted[np.arange(len(t)), np.minimum(t, BUDGET - 1)]
        t, steps = np.where(t < length, t + reached + 1, t), steps + 1
    return steps


# What drafting costs, for what it cost on two cores; how much of that flex believes; and the least
# share of the best that it may reach.
CASES = (
    (1.0, 1.0, 0.975),
    (1.0, 0.95, 0.975),
    (1.0, 1.05, 0.975),
    (0.8, 1.0, 0.97),
    (1.25, 1.0, 0.97),
)


@pytest.mark.parametrize("size", COSTS)
def test_flex_comes_near_the_best_fixed_schedule(size: int) -> None:
    times = jax.jit(jax.vmap(flex_time, in_axes=(0, 0, 0, None, None)))
    for domain in DOMAINS:
        length, survival, accepted = batches(domain, size)
        steps = sum(map(sequential_steps, np.asarray(length), np.asarray(accepted)))
        plain = COSTS[size][0] * jnp.sum(jnp.max(length, axis=1) - 1)
        for scale, error, least in CASES:
            costs = jnp.array(COSTS[size]).at[1:].multiply(scale)
            believed = costs.at[1:].multiply(error)
            best = min(plain, steps * costs[-1] + len(length) * (costs[1] - costs[0]))
            share = best / jnp.sum(times(length, survival, accepted, costs, believed))
            print(f"{domain}, {size} rows, {scale} of the costs, {error} believed: {share:.3f}")
            assert share >= least
