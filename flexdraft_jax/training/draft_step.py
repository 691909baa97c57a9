"""One step of Attention Tuning (FlexDraft paper, section on training).

The clean tokens of a packed row run through the target once, without gradient. Mask groups behind
random anchors then attend to what that pass left behind, and only they are differentiated: the
gradient and the optimizer's state have the shape of the draft parameters, never of the target's.

Groups do not see each other, so they are worked off in chunks, from mask embedding to loss and
back again; the logits [B, A, n-1, V] of all groups never exist at once.

    rows [B, T] --microbatches--> clean pass --chunks of groups--> draft layers, heads, loss
                                                                   and their gradient, summed up
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.models.draft import draft_logical_axes
from flexdraft_jax.models.flexdraft import FlexDraft, PackedPass
from flexdraft_jax.models.target import Target, target_logical_axes
from flexdraft_jax.parallel.mesh import whole_along_fsdp
from flexdraft_jax.training.accumulation import accumulate, add
from flexdraft_jax.training.anchors import Groups, sample_groups
from flexdraft_jax.training.config import DraftStepConfig, ObjectiveConfig, TrainDraftConfig
from flexdraft_jax.training.loop import StepFn
from flexdraft_jax.training.objectives import SlotScores, expected_tau, mean_loss, score_slots
from flexdraft_jax.training.optimizer import (
    Params,
    TrainState,
    apply_gradients,
    learning_rate_schedule,
)
from flexdraft_jax.training.rows import Rows


def make_draft_step(
    config: TrainDraftConfig,
    target: Target,
    optimizer: optax.GradientTransformation,
    state_shardings: TrainState | None = None,
) -> StepFn:
    """The jitted optimizer step of a target: `draft_step` with its weights.

    Args:
        config: what to compute and how.
        target: frozen; cast to the compute dtype once, here.
        optimizer: for the draft parameters.
        state_shardings: as for `draft_step`.

    Raises:
        ValueError: the configuration cannot be computed; see `check_step`.
    """
    step = draft_step(config, target.config, optimizer, state_shardings)
    frozen = _cast(target.params, config.step.compute_dtype)
    return lambda state, rows: step(state, frozen, rows)


def draft_step(
    config: TrainDraftConfig,
    target: TargetConfig,
    optimizer: optax.GradientTransformation,
    state_shardings: TrainState | None = None,
) -> jax.stages.Wrapped:
    """The jitted step (state, target's parameters, rows) -> (state, metrics); donates the state.

    Its metrics are `loss`, `row_loss` [B] (so that a row that makes it NaN can be named), `slots`
    [n-1] (share of right drafts), `expected_tau`, `grad_norm` and `learning_rate`.

    Args:
        config: what to compute and how.
        target: of the frozen model, whose parameters come in the compute dtype.
        optimizer: for the draft parameters.
        state_shardings: a sharding at every leaf of the state, which keeps it from step to step.
            None leaves that to the compiler, as is right on one device.

    Raises:
        ValueError: the configuration cannot be computed; see `check_step`.
    """
    check_step(config)
    places = jax.tree.leaves(state_shardings)
    mesh = places[0].mesh if places else None
    compute = config.step
    model = FlexDraft(target, config.model, compute.compute_dtype, mesh, compute.attention)
    schedule = learning_rate_schedule(config.train)
    shardings = {} if state_shardings is None else {"out_shardings": _outputs(state_shardings)}

    @partial(jax.jit, donate_argnums=0, **shardings)
    def step(
        state: TrainState, target_params: Params, rows: Rows
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # Keyed by the step, so that a resumed run draws the anchors it would have drawn.
        groups = sample_groups(
            jax.random.fold_in(jax.random.key(config.seed), state.step),
            rows,
            num_anchors=config.anchors,
            block_size=config.model.block_size,
        )
        gradients, scores = loss_and_gradients(
            model, config.objective, config.step, target_params, state.params, rows, groups
        )
        metrics = {
            **score_metrics(scores, groups.counted[:, :, 1:]),
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step)),
        }
        return apply_gradients(state, gradients, optimizer), metrics

    return step


def check_step(config: TrainDraftConfig) -> None:
    """Raises ValueError, with what would be right, for settings that do not go together."""
    if not any(vars(config.objective.terms).values()):
        names = ", ".join(vars(config.objective.terms))
        raise ValueError(f"objective.terms are all 0: at least one of {names} must count")
    config.step.check(config.train.batch_size, config.anchors)
    step, mesh = config.step, config.mesh
    if step.microbatches > 1 and step.chunk and mesh.fsdp > 1 and mesh.tensor > 1:
        # Seen on 8 devices with jax 0.10.2, with some shapes: losses are right, gradients are not.
        raise ValueError(
            f"step.microbatches={step.microbatches}, step.chunk={step.chunk}, "
            f"mesh.fsdp={mesh.fsdp}, mesh.tensor={mesh.tensor}: XLA compiles wrong gradients where "
            "all four are set; leave step.microbatches at 1, or one of the others"
        )


def loss_and_gradients(
    model: FlexDraft,
    objective: ObjectiveConfig,
    config: DraftStepConfig,
    target_params: Params,
    draft_params: Params,
    rows: Rows,
    groups: Groups,
) -> tuple[Params, SlotScores]:
    """The gradient of `mean_loss` in the draft parameters, and the scores of all slots.

    Args:
        model: of both parameter trees.
        objective: which loss.
        config: in which parts and which precision.
        target_params: frozen, in the compute dtype.
        draft_params: float32.
        rows: [B, T] packed documents.
        groups: A mask groups of each row.

    Returns:
        Gradients, float32 and shaped like `draft_params`, and scores [B, A, n-1].
    """
    num_groups = groups.anchors.shape[1]
    num_counted = jnp.maximum(jnp.sum(groups.counted[:, :, 1:]), 1)
    params = _cast(draft_params, config.compute_dtype)
    # All chunks of groups use them, and they are most of what a chunk would gather.
    head = "embed" if model.config.tie_word_embeddings else "lm_head"
    target_params = _gathered(model, target_params, target_logical_axes(model.config), head)
    assert model.draft_config is not None
    axes = draft_logical_axes(model.config, model.draft_config)
    params = _gathered(model, params, axes, "calibration")

    def microbatch(total: Params, part: tuple[Rows, Groups]) -> tuple[Params, SlotScores]:
        rows, groups = part
        clean = clean_pass(model, {"target": target_params}, rows)

        def chunk(total: Params, groups: Groups) -> tuple[Params, SlotScores]:
            def loss(params: Params) -> tuple[jax.Array, SlotScores]:
                both = {"target": target_params, "draft": params}
                scores = score_groups(model, objective, both, clean, rows, groups, config.remat)
                return jnp.sum(scores.losses) / num_counted, scores

            gradients, scores = jax.grad(loss, has_aux=True)(params)
            return add(total, gradients), scores

        return accumulate(chunk, total, groups, num_groups // (config.chunk or num_groups), axis=1)

    zeros = jax.tree.map(jnp.zeros_like, draft_params)
    return accumulate(microbatch, zeros, (rows, groups), config.microbatches, axis=0)


def score_groups(
    model: FlexDraft,
    objective: ObjectiveConfig,
    params: Params,
    clean: PackedPass,
    rows: Rows,
    groups: Groups,
    remat: bool = False,
) -> SlotScores:
    """Scores of slots 1..n-1 of some groups, differentiable in `params["draft"]`."""
    hidden = draft_hidden(model, params, clean, rows, groups, remat)
    return score_slots(
        objective,
        draft_logits(model, params, hidden, groups),
        groups.labels[:, :, 1:],
        expected_logits(model, params, clean, groups),
        groups.counted[:, :, 1:],
    )


def score_metrics(scores: SlotScores, counted: jax.Array) -> dict[str, jax.Array]:
    """What a step reports of its slots; `counted` is [B, A, n-1] bool."""
    right = jnp.sum(scores.right & counted, (0, 1))
    return {
        "loss": mean_loss(scores.losses, counted),
        "row_loss": jax.vmap(mean_loss)(scores.losses, counted),
        "slots": right / jnp.maximum(jnp.sum(counted, (0, 1)), 1),
        "expected_tau": expected_tau(scores.acceptance, counted),
    }


def clean_pass(model: FlexDraft, params: Params, rows: Rows) -> PackedPass:
    """The frozen part: what the clean tokens of packed rows leave behind, as constants."""
    places = (rows.positions, rows.segment_ids)
    return _apply(model, params, "packed_clean_pass", rows.tokens, *places)


def draft_hidden(
    model: FlexDraft,
    params: Params,
    clean: PackedPass,
    rows: Rows,
    groups: Groups,
    remat: bool = False,
) -> jax.Array:
    """Final-normed hidden states of slots 1..n-1, [B, A, n-1, E]."""
    places = (rows.positions, rows.segment_ids, groups.anchors, groups.labels.shape[-1])
    return _apply(model, params, "packed_draft_pass", clean, *places, remat)[:, :, 1:]


def draft_logits(model: FlexDraft, params: Params, hidden: jax.Array, groups: Groups) -> jax.Array:
    """Calibrated logits of slots 1..n-1.

    The calibration gets the token at slot 0 as the bonus, as after verification in decoding.

    Args:
        model: of both parameter trees.
        params: both trees.
        hidden: [B, A, n-1, E], of `draft_hidden`.
        groups: of the same slots.

    Returns:
        [B, A, n-1, V] float32, differentiable in the draft parameters.
    """
    return _apply(model, params, "draft_logits", hidden, groups.labels[:, :, :1])


def expected_logits(
    model: FlexDraft, params: Params, clean: PackedPass, groups: Groups
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
    return _apply(model, params, "target_logits", hidden)


def _apply(model: FlexDraft, params: Params, method: str, *args: Any) -> Any:
    return model.apply({"params": params}, *args, method=method)


def _gathered(model: FlexDraft, params: Params, axes: Params, name: str) -> Params:
    """The parameters with one part of them whole along `fsdp`."""
    return {
        **params,
        name: whole_along_fsdp(params[name], model.mesh, axes[name], model.config),
    }


def _cast(params: Params, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _outputs(state_shardings: TrainState) -> tuple[TrainState, jax.sharding.NamedSharding]:
    """Of the state, and of all metrics: on every device, so that each process can read them."""
    mesh = jax.tree.leaves(state_shardings)[0].mesh
    return state_shardings, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
