"""One small target, its drafts and one set of sizes, so that tests share compiled programs."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding.batch import Decoding, start
from flexdraft_jax.decoding.costs import CostModel, StepCosts
from flexdraft_jax.decoding.requests import check_requests
from flexdraft_jax.decoding.sizes import Sizes

# A sliding window in the middle layer, more heads than width, and D = 2 of 3 layers drafting.
CONFIG = fd.TargetConfig(
    model_type="qwen3",
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    qk_norm=True,
    layer_windows=(None, 9, None),
    max_position_embeddings=256,
)
SIZES = Sizes(prompt=16, slots=64, max_slots=128)
BLOCK_SIZE = 5
ROW_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "seed", "row_ids")
# Costs that make flex take one step alone: plain, sequential with 3 drafts, parallel with 4. The
# steps to choose from are the same for all of them.
FREE, DEAR = 1e-3, 10.0
FORCING = (
    StepCosts(5, 4, 128, {0: FREE, 3: DEAR, 4: DEAR}, DEAR, {3: 9 * DEAR, 4: DEAR}),
    StepCosts(5, 4, 128, {0: DEAR, 3: FREE, 4: DEAR}, FREE, {3: 9 * DEAR, 4: 0.9 * DEAR}),
    StepCosts(5, 4, 128, {0: DEAR, 3: DEAR, 4: DEAR}, DEAR, {3: 9 * DEAR, 4: FREE}),
)


def noisy(params, scale: float, seed: int):
    """The same tree with Gaussian noise on every weight."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [x + e for x, e in zip(leaves, noise, strict=True)])


@pytest.fixture(scope="session")
def target() -> fd.Target:
    """Random, and lively enough not to repeat one token for ever."""
    target = fd.init_target(CONFIG, jax.random.key(3))
    return dataclasses.replace(target, params=noisy(target.params, 0.15, seed=4))


@pytest.fixture(scope="session")
def draft(target: fd.Target) -> fd.Draft:
    """Copied projections and a random calibration: sometimes right."""
    draft = fd.init_draft(
        target,
        num_draft_layers=2,
        block_size=BLOCK_SIZE,
        calibration_rank=8,
        rng=jax.random.key(5),
    )
    return dataclasses.replace(draft, params=noisy(draft.params, 0.05, seed=6))


@pytest.fixture(scope="session")
def foreign_draft(draft: fd.Draft) -> fd.Draft:
    """Of the right shape, with nothing to do with the target."""
    zeros = jax.tree.map(jnp.zeros_like, draft.params)
    return dataclasses.replace(draft, params=noisy(zeros, 1.0, seed=7))


@pytest.fixture(scope="session")
def five_tokens() -> tuple[fd.Target, fd.Draft, fd.Draft]:
    """A smaller target of five tokens, a draft of its kind, and a foreign one (n = 4)."""
    config = dataclasses.replace(
        CONFIG,
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_layers=2,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        layer_windows=(None, None),
    )
    target = fd.init_target(config, jax.random.key(0))
    target = dataclasses.replace(target, params=noisy(target.params, 0.2, seed=1))
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=4, calibration_rank=4, rng=jax.random.key(2)
    )
    good, foreign = (
        dataclasses.replace(draft, params=noisy(draft.params, scale, seed=3))
        for scale in (0.2, 1.0)
    )
    return target, good, foreign


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Eight prompts of different lengths, 1 and the whole bucket among them."""
    lengths = [1, 16, 3, 7, 12, 1, 9, 5]
    key = jax.random.key(8)
    return [
        jax.random.randint(jax.random.fold_in(key, i), (n,), 0, CONFIG.vocab_size).tolist()
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def begin(target: fd.Target) -> Callable[..., Decoding]:
    """`start` with this module's sizes: prefilled, no step done."""

    def begin(
        draft, prompts, max_new_tokens, schedule, threshold=0.3, stops=None, using=target, **kwargs
    ):
        rows = {name: kwargs.pop(name) for name in tuple(kwargs) if name in ROW_SETTINGS}
        requests = check_requests(target.config, prompts, max_new_tokens, threshold, stops, **rows)
        return start(using, draft, requests, schedule, **{"sizes": SIZES, **kwargs})

    return begin


@pytest.fixture(scope="session")
def decode(begin) -> Callable[..., fd.GenerateOutput]:
    """`generate` with this module's sizes."""

    def decode(*args, **kwargs) -> fd.GenerateOutput:
        decoding = begin(*args, **kwargs)
        decoding.advance(10_000)
        return decoding.output()

    return decode


@pytest.fixture(scope="session")
def plain(decode, prompts: list[list[int]]) -> list[list[int]]:
    """What the target alone writes behind each prompt, 40 tokens."""
    return decode(None, prompts, 40, "ar").tokens


@pytest.fixture
def turns(monkeypatch):
    """Makes flex take another kind of step in each round."""
    costs = itertools.cycle(FORCING)
    monkeypatch.setattr(CostModel, "at", lambda self, batch_size, num_slots: next(costs))
