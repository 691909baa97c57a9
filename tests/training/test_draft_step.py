"""The drafter's step: what is trained, what it reports, and that it learns what decoding uses."""

import dataclasses

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
from flexdraft_jax.training.config import DraftStepConfig, TrainDraftConfig
from flexdraft_jax.training.config_files import apply_overrides
from flexdraft_jax.training.draft_step import (
    clean_pass,
    draft_hidden,
    draft_logits,
    expected_logits,
    make_draft_step,
    score_metrics,
)
from flexdraft_jax.training.objectives import SlotScores
from flexdraft_jax.training.optimizer import TrainState, first_state, make_optimizer
from flexdraft_jax.training.rows import Rows

_N = 4  # block size


def _state(config: TrainDraftConfig, draft: Draft) -> TrainState:
    return first_state(draft.params, make_optimizer(config.train))


def test_loss_falls_and_the_target_stays(
    draft_config: TrainDraftConfig, step_target: Target, step_draft: Draft, step_rows: Rows
) -> None:
    config = dataclasses.replace(
        draft_config, train=dataclasses.replace(draft_config.train, steps=60, learning_rate=1e-2)
    )
    before = jax.tree.map(np.array, step_target.params)
    step = make_draft_step(config, step_target, make_optimizer(config.train))
    state = _state(config, step_draft)
    losses = []
    for _ in range(50):
        state, metrics = step(state, step_rows)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    jax.tree.map(np.testing.assert_array_equal, step_target.params, before)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, step_draft.params)
    assert jax.tree.all(moved), "every draft parameter is reached by the gradient"


def test_every_feature_of_every_family_trains(
    draft_config: TrainDraftConfig, special_target: Target, step_rows: Rows
) -> None:
    draft = fd.init_draft(
        special_target, num_draft_layers=2, block_size=_N, calibration_rank=8, rng=jax.random.key(0)
    )
    train = dataclasses.replace(draft_config.train, steps=30, learning_rate=1e-2)
    draft_config = dataclasses.replace(draft_config, train=train, model=draft.config)
    step = make_draft_step(draft_config, special_target, make_optimizer(train))
    state = _state(draft_config, draft)
    losses = []
    for _ in range(25):
        state, metrics = step(state, step_rows)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, draft.params)
    assert jax.tree.all(moved)


def test_state_holds_three_copies_of_the_draft_and_nothing_of_the_target(
    draft_config: TrainDraftConfig, step_draft: Draft
) -> None:
    def size(tree: object) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    state = _state(draft_config, step_draft)
    # Parameters, and AdamW's two means; the rest are step counters.
    assert 0 <= size(state) - 3 * size(step_draft.params) <= 64


def test_metrics_say_how_good_each_slot_and_each_row_is() -> None:
    counted = np.ones((3, 2, 2), bool)
    counted[0, 1] = False
    losses = np.arange(12.0).reshape(3, 2, 2) * counted
    losses[2, 0, 0] = np.nan
    right = np.zeros((3, 2, 2), bool)
    right[:2, :, 0] = True
    metrics = score_metrics(SlotScores(losses, np.full((3, 2, 2), 0.5), right), counted)
    np.testing.assert_array_equal(metrics["row_loss"], [(0 + 1) / 2, (4 + 5 + 6 + 7) / 4, np.nan])
    assert np.isnan(metrics["loss"])
    np.testing.assert_allclose(metrics["slots"], [3 / 5, 0])
    assert metrics["expected_tau"] == 1 + 0.5 + 0.25


def test_bfloat16_computes_and_float32_keeps(
    draft_config: TrainDraftConfig, step_target: Target, step_draft: Draft, step_rows: Rows
) -> None:
    config = dataclasses.replace(
        draft_config,
        # So small that bfloat16 parameters would not move at all.
        train=dataclasses.replace(draft_config.train, learning_rate=1e-6, warmup_fraction=0.1),
        step=DraftStepConfig(compute_dtype="bfloat16", chunk=2),
    )
    half = Draft(step_draft.config, jax.tree.map(lambda x: x.astype("bfloat16"), step_draft.params))
    step = make_draft_step(config, step_target, make_optimizer(config.train))
    state = _state(config, half)
    for _ in range(3):  # The first has rate 0.
        state, metrics = step(state, step_rows)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {jnp.dtype("float32")}
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, half.params)
    assert jax.tree.all(moved)
    assert 0 < metrics["learning_rate"] <= 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.terms.forward_kl": 0.0}, "objective.terms are all 0: at least one of cross_"),
        ({"step.chunk": 3}, "step.chunk=3: must divide anchors=8, or be 0"),
        ({"step.microbatches": 3}, "step.microbatches=3: must divide batch_size=4"),
        (
            {"step.microbatches": 2, "step.chunk": 2, "mesh.fsdp": 2, "mesh.tensor": 4},
            "mesh.fsdp=2, mesh.tensor=4: XLA compiles wrong gradients",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    draft_config: TrainDraftConfig, step_target: Target, changes: dict[str, float], message: str
) -> None:
    config = apply_overrides(draft_config, [f"{name}={value}" for name, value in changes.items()])
    with pytest.raises(ValueError, match=message):
        make_draft_step(config, step_target, make_optimizer(config.train))


def test_neighbours_and_later_tokens_do_not_reach_a_group(
    step_target: Target, step_draft: Draft, step_rows: Rows
) -> None:
    model = flexdraft_model(step_target, step_draft)
    params = flexdraft_variables(step_target, step_draft)["params"]
    anchors = np.array([[9], [9]], np.int32)

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        changed = step_rows.replace(tokens=tokens)
        labels = jnp.zeros((2, 1, _N), jnp.int32)
        groups = Groups(anchors, labels, labels > 0)
        clean = clean_pass(model, params, changed)
        hidden = draft_hidden(model, params, clean, changed, groups)
        return draft_logits(model, params, hidden, groups)

    original = np.asarray(logits(step_rows.tokens))
    visible = (step_rows.segment_ids == step_rows.segment_ids[0, 9]) & (np.arange(64) <= 9)
    other = np.where(visible, step_rows.tokens, (step_rows.tokens + 1) % 256)
    np.testing.assert_array_equal(np.asarray(logits(other))[0], original[0])
    own = np.array(step_rows.tokens)
    own[0, 9] = (own[0, 9] + 1) % 256
    assert np.any(np.asarray(logits(own))[0] != original[0])


def test_training_sees_what_decoding_does(step_target: Target, step_draft: Draft) -> None:
    """Drafts from packed rows, walked through by hand, are accepted just as in real decoding."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 256, length).tolist() for length in (5, 9, 13)]
    out = fd.generate(
        step_target,
        step_draft,
        prompts,
        max_new_tokens=20,
        schedule="sequential",
        confidence_threshold=0.0,
    )
    plain = fd.generate(step_target, None, prompts, max_new_tokens=40, schedule="ar")
    turns = [
        EncodedTurn(prompt + tokens, [False] * len(prompt) + [True] * len(tokens))
        for prompt, tokens in zip(prompts, plain.tokens, strict=True)
    ]
    rows = Rows(**pack(turns, 192).arrays())
    assert rows.tokens.shape[0] == 1
    model = flexdraft_model(step_target, step_draft)
    params = flexdraft_variables(step_target, step_draft)["params"]
    anchors = np.arange(192 - _N, dtype=np.int32)[None]
    labels = rows.tokens[0][anchors[..., None] + 1 + np.arange(_N)]
    groups = Groups(anchors, labels, np.ones_like(labels, bool))

    @jax.jit
    def predictions(rows: Rows) -> tuple[jax.Array, jax.Array]:
        clean = clean_pass(model, params, rows)
        hidden = draft_hidden(model, params, clean, rows, groups)
        logits = draft_logits(model, params, hidden, groups)
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
