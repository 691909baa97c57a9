"""Attention Tuning: trains the draft parameters of a frozen target (FlexDraft paper, section on
training).

The clean tokens of a packed row run through the target once, without gradient. Mask groups behind
random anchors then attend to what that pass left behind, and only they are differentiated: the
gradient and the optimizer's state have the shape of the draft parameters, never of the target's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.checkpoints.draft import save_draft
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.data.builder import prepare_rows, source_of_turns
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.data.pipeline import row_loader
from flexdraft_jax.evaluation.measure import evaluate_prompts
from flexdraft_jax.models.draft import Draft, draft_logical_axes, init_draft
from flexdraft_jax.models.flexdraft import CleanPass, FlexDraft, flexdraft_model
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import make_mesh, shardings
from flexdraft_jax.training.anchors import Groups, sample_groups
from flexdraft_jax.training.checkpoints import prepare_work_dir
from flexdraft_jax.training.config import DraftEvalConfig, TrainDraftConfig
from flexdraft_jax.training.distributed import place_state
from flexdraft_jax.training.flops import draft_step_flops
from flexdraft_jax.training.loop import EvaluateFn, StepFn, fit, mean_tau
from flexdraft_jax.training.objectives import draft_loss
from flexdraft_jax.training.optimizer import Params, TrainState, make_optimizer
from flexdraft_jax.training.progress import track
from flexdraft_jax.training.rollouts import target_fingerprint, write_rollouts
from flexdraft_jax.training.rows import Rows


def train_draft(
    config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    work_dir: str | Path,
) -> Draft:
    """Trains a drafter on the target's own responses and writes it to `work_dir/export`.

    Started again with the same configuration, target and directory, it continues where it was:
    at the next chunk of responses, or at the newest checkpoint.

    Args:
        config: what to train, on what, and how.
        target: frozen, in float32.
        tokenizer: of the target, with a chat template.
        work_dir: for responses, prepared data, checkpoints, metrics and the exported drafter.

    Raises:
        ValueError: `work_dir` holds a run with another configuration or target, or the drafter
            does not fit the target.
        TrainingDiverged: the loss became NaN or infinite.
    """
    work_dir = Path(work_dir)
    draft = init_draft(
        target,
        num_draft_layers=config.model.num_draft_layers,
        block_size=config.model.block_size,
        calibration_rank=config.model.calibration_rank,
        rng=jax.random.key(config.seed),
    )
    provenance = prepare_work_dir(work_dir, config, target=target_fingerprint(target))
    with track("the target writes its responses", config.data.rollouts) as advance:
        turns = write_rollouts(target, tokenizer, config.data, work_dir / "rollouts", advance)
    rows = prepare_rows(
        source_of_turns("rollouts", {"train": turns}),
        length=config.data.sequence_length,
        data_dir=work_dir / "data",
    )
    optimizer = make_optimizer(config.train)
    mesh = make_mesh()
    axes = draft_logical_axes(target.config, draft.config)
    state = fit(
        place_state(
            mesh,
            TrainState(jnp.zeros((), jnp.int32), draft.params, optimizer.init(draft.params)),
            shardings(mesh, axes, draft.params, target.config),
        ),
        make_draft_step(config, target, draft, optimizer),
        row_loader(rows["train"], batch_size=config.train.batch_size, seed=config.seed),
        mesh=mesh,
        batch_size=config.train.batch_size,
        total_steps=config.train.steps,
        config=config.loop,
        work_dir=work_dir,
        provenance=provenance,
        evaluate=make_tau(config.eval, target, draft.config, tokenizer),
        score=mean_tau,
        step_flops=draft_step_flops(
            target.config,
            draft.config,
            batch_size=config.train.batch_size,
            length=config.data.sequence_length,
            anchors=config.anchors,
        ),
    )
    trained = Draft(draft.config, state.params)
    save_draft(trained, target, work_dir / "export", dtype=config.export_dtype)
    return trained


def make_draft_step(
    config: TrainDraftConfig,
    target: Target,
    draft: Draft,
    optimizer: optax.GradientTransformation,
) -> StepFn:
    """The jitted optimizer step; the state is donated, the target is an argument like the batch."""
    model = flexdraft_model(target, draft)

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, target_params: Params, rows: Rows
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # Keyed by the step, so that a resumed run draws the anchors it would have drawn.
        groups = sample_groups(
            jax.random.fold_in(jax.random.key(config.seed), state.step),
            rows,
            num_anchors=config.anchors,
            block_size=draft.config.block_size,
        )
        clean = clean_pass(model, {"params": {"target": target_params}}, rows)

        def loss_fn(params: Params) -> tuple[jax.Array, jax.Array]:
            variables = {"params": {"target": target_params, "draft": params}}
            logits = draft_logits(model, variables, clean, rows, groups)
            target_logits = expected_logits(model, variables, clean, groups)
            counted = groups.counted[:, :, 1:]
            labels = groups.labels[:, :, 1:]
            loss = draft_loss(config.objective, logits, labels, target_logits, counted)
            right = (jnp.argmax(logits, axis=-1) == labels) & counted
            return loss, jnp.sum(right, (0, 1)) / jnp.maximum(jnp.sum(counted, (0, 1)), 1)

        (loss, slots), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "slots": slots}
        return TrainState(state.step + 1, params, opt_state), metrics

    return lambda state, rows: step(state, target.params, rows)


def clean_pass(model: FlexDraft, variables: Params, rows: Rows) -> CleanPass:
    """The frozen part: what the clean tokens of packed rows leave behind, as constants."""
    places = (rows.positions, rows.segment_ids)
    return _apply(model, variables, "packed_clean_pass", rows.tokens, *places)


def draft_logits(
    model: FlexDraft, variables: Params, clean: CleanPass, rows: Rows, groups: Groups
) -> jax.Array:
    """Calibrated logits of slots 1..n-1.

    The calibration gets the token at slot 0 as the bonus, as after verification in decoding.

    Returns:
        [B, A, n-1, V] float32, differentiable in the draft parameters.
    """
    bonus, block_size = groups.labels[:, :, :1], groups.labels.shape[-1]
    places = (rows.positions, rows.segment_ids, groups.anchors)
    hidden = _apply(model, variables, "packed_draft_pass", clean, *places, block_size)
    return _apply(model, variables, "draft_logits", hidden[:, :, 1:], bonus)


def expected_logits(
    model: FlexDraft, variables: Params, clean: CleanPass, groups: Groups
) -> jax.Array:
    """What the target itself predicts at the places of slots 1..n-1, given the true tokens.

    The clean token just before a slot's place predicts it: one place further on than the slot
    before it.

    Returns:
        [B, A, n-1, V] float32
    """
    batch, num_anchors = groups.anchors.shape
    num_slots = groups.labels.shape[-1] - 1
    before = groups.anchors[..., None] + 1 + jnp.arange(num_slots)  # [B, A, n-1]
    # Places behind the end of a row are not counted; any index will do there.
    before = jnp.minimum(before, clean.hidden.shape[1] - 1).reshape(batch, -1, 1)
    hidden = jnp.take_along_axis(clean.hidden, before, axis=1)
    hidden = hidden.reshape(batch, num_anchors, num_slots, -1)
    return _apply(model, variables, "target_logits", hidden)


def _apply(model: FlexDraft, variables: Params, method: str, *args: Any) -> Any:
    return model.apply(variables, *args, method=method)


def make_tau(
    config: DraftEvalConfig,
    target: Target,
    draft_config: DraftConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> EvaluateFn:
    """A function from draft parameters to tau of real decoding, per domain of held-out prompts.

    Beside tau stands the share of distinct 8-grams: text that repeats itself is easy to draft.
    """

    def evaluate(params: Params) -> dict[str, float]:
        draft = Draft(draft_config, params)
        values = {}
        for domain in config.domains:
            report = evaluate_prompts(
                target,
                draft,
                tokenizer,
                default_prompts(domain)[: config.prompts_per_domain],
                confidence_threshold=0.0,
                max_new_tokens=config.max_new_tokens,
            )
            values[f"tau_{domain}"] = report.tau_steps
            values[f"distinct_{domain}"] = report.distinct_8grams
            if report.accuracy is not None:
                values[f"accuracy_{domain}"] = report.accuracy
        return values

    return evaluate
