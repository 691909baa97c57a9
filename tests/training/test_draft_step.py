"""The drafter's step: what is trained, in which parts, and that it learns what decoding uses."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.pipeline import pack
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.flexdraft import flexdraft_model, flexdraft_variables
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.anchors import Groups
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.draft_step import (
    clean_pass,
    draft_logits,
    expected_logits,
    make_draft_step,
)
from flexdraft_jax.training.optimizer import TrainState, first_state, make_optimizer
from flexdraft_jax.training.rows import Rows

_N = 4  # block size


@pytest.fixture(scope="module")
def target(target_run: tuple[Target, Path]) -> Target:
    return target_run[0]


@pytest.fixture(scope="module")
def draft(target: Target) -> Draft:
    """A draft that is not merely the target's copy, so that no mistake hides."""
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=_N, calibration_rank=8, rng=jax.random.key(0)
    )
    leaves, structure = jax.tree.flatten(draft.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.03 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return Draft(draft.config, jax.tree.unflatten(structure, noisy))


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Two packed rows of several documents each, all tokens random."""
    rng = np.random.default_rng(0)
    turns = []
    for _ in range(6):
        prompt, response = int(rng.integers(3, 8)), int(rng.integers(6, 16))
        tokens = rng.integers(0, 256, prompt + response).tolist()
        turns.append(EncodedTurn(tokens, [False] * prompt + [True] * response))
    packed = pack(turns, 64)
    assert packed.tokens.shape[0] == 2
    return Rows(**packed.arrays())


def _state(config: TrainDraftConfig, draft: Draft) -> TrainState:
    return first_state(draft.params, make_optimizer(config.train))


def test_loss_falls_and_the_target_stays(
    draft_config: TrainDraftConfig, target: Target, draft: Draft, rows: Rows
) -> None:
    config = dataclasses.replace(
        draft_config, train=dataclasses.replace(draft_config.train, steps=60, learning_rate=1e-2)
    )
    before = jax.tree.map(np.array, target.params)
    step = make_draft_step(config, target, make_optimizer(config.train))
    state = _state(config, draft)
    losses = []
    for _ in range(50):
        state, metrics = step(state, rows)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    jax.tree.map(np.testing.assert_array_equal, target.params, before)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, draft.params)
    assert jax.tree.all(moved), "every draft parameter is reached by the gradient"


def test_state_holds_three_copies_of_the_draft_and_nothing_of_the_target(
    draft_config: TrainDraftConfig, draft: Draft
) -> None:
    def size(tree: object) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    state = _state(draft_config, draft)
    # Parameters, and AdamW's two means; the rest are step counters.
    assert 0 <= size(state) - 3 * size(draft.params) <= 64


def test_neighbours_and_later_tokens_do_not_reach_a_group(
    target: Target, draft: Draft, rows: Rows
) -> None:
    model, params = flexdraft_model(target, draft), flexdraft_variables(target, draft)["params"]
    anchors = np.array([[9], [9]], np.int32)

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        changed = rows.replace(tokens=tokens)
        labels = jnp.zeros((2, 1, _N), jnp.int32)
        groups = Groups(anchors, labels, labels > 0)
        clean = clean_pass(model, params, changed)
        return draft_logits(model, params, clean, changed, groups)

    original = np.asarray(logits(rows.tokens))
    visible = (rows.segment_ids == rows.segment_ids[0, 9]) & (np.arange(64) <= 9)
    other = np.where(visible, rows.tokens, (rows.tokens + 1) % 256)
    np.testing.assert_array_equal(np.asarray(logits(other))[0], original[0])
    own = np.array(rows.tokens)
    own[0, 9] = (own[0, 9] + 1) % 256
    assert np.any(np.asarray(logits(own))[0] != original[0])


def test_training_sees_what_decoding_does(target: Target, draft: Draft) -> None:
    """Drafts from packed rows, walked through by hand, are accepted just as in real decoding."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 256, length).tolist() for length in (5, 9, 13)]
    out = fd.generate(
        target, draft, prompts, max_new_tokens=20, schedule="sequential", confidence_threshold=0.0
    )
    plain = fd.generate(target, None, prompts, max_new_tokens=40, schedule="ar")
    turns = [
        EncodedTurn(prompt + tokens, [False] * len(prompt) + [True] * len(tokens))
        for prompt, tokens in zip(prompts, plain.tokens, strict=True)
    ]
    rows = Rows(**pack(turns, 192).arrays())
    assert rows.tokens.shape[0] == 1
    model, params = flexdraft_model(target, draft), flexdraft_variables(target, draft)["params"]
    anchors = np.arange(192 - _N, dtype=np.int32)[None]
    labels = rows.tokens[0][anchors[..., None] + 1 + np.arange(_N)]
    groups = Groups(anchors, labels, np.ones_like(labels, bool))

    @jax.jit
    def predictions(rows: Rows) -> tuple[jax.Array, jax.Array]:
        clean = clean_pass(model, params, rows)
        logits = draft_logits(model, params, clean, rows, groups)
        expected = expected_logits(model, params, clean, groups)
        return jnp.argmax(logits, -1), jnp.argmax(expected, -1)

    drafts, own = (np.asarray(tokens[0]) for tokens in predictions(rows))  # [A, n-1]

    start, accepted_somewhere = 0, False
    for turn, prompt, tokens, lengths in zip(
        turns, prompts, plain.tokens, out.acceptance_lengths, strict=True
    ):
        anchor, found = start + len(prompt) - 1, []
        emitted = 1  # The bonus of the prefill.
        while emitted < 20:
            right = drafts[anchor] == labels[0, anchor, 1:]
            found.append(1 + int(np.cumprod(right).sum()))
            anchor += found[-1]
            emitted += found[-1]
        assert found == lengths
        accepted_somewhere |= max(found) > 1
        # Teacher forcing on the target's own text gives that text back.
        first = start + len(prompt) - 1
        np.testing.assert_array_equal(own[first, :3], tokens[1:4])
        start += len(turn.tokens)
    assert accepted_somewhere
