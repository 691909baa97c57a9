"""The drafter's step as one would write it first: what the benchmark compares ours with.

Clean and mask tokens lie side by side in one sequence, behind one attention mask over everything,
and the whole pass from the split on is differentiated. The logits of all tokens and of all slots
are computed at once. The loss is that of :mod:`flexdraft_jax.training.draft_step`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flexdraft_jax.models import masks
from flexdraft_jax.models.attention import Part, attend
from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.models.flexdraft import FlexDraft
from flexdraft_jax.models.layers import RopeTables, rope_tables
from flexdraft_jax.training.anchors import Groups
from flexdraft_jax.training.config import ObjectiveConfig
from flexdraft_jax.training.objectives import SlotScores, mean_loss, score_slots
from flexdraft_jax.training.optimizer import Params
from flexdraft_jax.training.rows import Rows


def plain_loss_and_gradients(
    model: FlexDraft,
    objective: ObjectiveConfig,
    target_params: Params,
    draft_params: Params,
    rows: Rows,
    groups: Groups,
) -> tuple[Params, SlotScores]:
    """What `draft_step.loss_and_gradients` computes, in one piece."""

    def loss(draft_params: Params) -> tuple[jax.Array, SlotScores]:
        params = {"target": target_params, "draft": draft_params}
        all_logits: Any = model.apply({"params": params}, rows, groups, method=_all_logits)
        target_logits, logits = all_logits
        counted = groups.counted[:, :, 1:]
        scores = score_slots(objective, logits, groups.labels[:, :, 1:], target_logits, counted)
        return mean_loss(scores.losses, counted), scores

    return jax.grad(loss, has_aux=True)(draft_params)


def _all_logits(model: FlexDraft, rows: Rows, groups: Groups) -> tuple[jax.Array, jax.Array]:
    """Of the target at the slots' places, and of the draft, both [B, A, n-1, V]."""
    clean, slots = _hidden(model, rows, groups)
    num_slots = slots.shape[2] - 1
    before = groups.anchors[..., None] + 1 + jnp.arange(num_slots)  # [B, A, n-1]
    before = jnp.minimum(before, clean.shape[1] - 1)
    target_logits = jax.vmap(lambda logits, at: logits[at])(model.target_logits(clean), before)
    return target_logits, model.draft_logits(slots[:, :, 1:], groups.labels[:, :, :1])


def _hidden(model: FlexDraft, rows: Rows, groups: Groups) -> tuple[jax.Array, jax.Array]:
    """Final-normed hidden states of clean tokens [B, T, E] and of all slots [B, A, n, E]."""
    (batch, length), (_, num_anchors, n) = rows.tokens.shape, groups.labels.shape
    rope = rope_tables(model.config, rows.positions)
    start = jnp.take_along_axis(rows.positions, groups.anchors, axis=1) + 1
    group_rope = rope_tables(model.config, (start[:, :, None] + jnp.arange(n)).reshape(batch, -1))
    x = model.target.embed(rows.tokens)
    for layer in model.target.layers[: model.split]:
        mask = masks.segment_mask(rows.segment_ids, rows.positions, layer.window)
        x, _ = layer(x, rope.of(layer.window), mask)

    masked = jnp.broadcast_to(model.draft.mask_embedding, (batch, num_anchors * n, x.shape[-1]))
    both = jnp.concatenate([x, masked], axis=1)  # [B, T + A * n, E]
    for d in range(len(model.draft.layers)):
        both = _layer(model, d, both, rope, group_rope, rows, groups)
    both = model.target.final_norm(both)
    return both[:, :length], both[:, length:].reshape(batch, num_anchors, n, -1)


def _layer(
    model: FlexDraft,
    d: int,
    both: jax.Array,
    rope: RopeTables,
    group_rope: RopeTables,
    rows: Rows,
    groups: Groups,
) -> jax.Array:
    """Draft layer `d` over clean and mask tokens, [B, T + A * n, E]."""
    own, layer = model.draft.layers[d], model.target.layers[model.split + d]
    length = rows.tokens.shape[1]
    normed = layer.input_norm(both)
    queries, kv = layer.attention.qkv(normed[:, :length], rope.of(layer.window))
    group_queries, group_kv = own.qkv(normed[:, length:], group_rope.of(layer.window))
    all_kv = KeysValues(*(jnp.concatenate(pair, 2) for pair in zip(kv, group_kv, strict=True)))
    values = attend(
        jnp.concatenate([queries, group_queries], axis=1),
        [Part(all_kv, _mask(rows, groups, layer.window))],
    )
    attended = [layer.attention.output(values[:, :length]), own.output(values[:, length:])]
    return layer.after_attention(both, jnp.concatenate(attended, axis=1))


def _mask(rows: Rows, groups: Groups, window: int | None) -> jax.Array:
    """Who sees whom, [B, T + A * n, T + A * n]; clean tokens see no mask token."""
    batch, num_anchors, n = groups.labels.shape
    clean = masks.segment_mask(rows.segment_ids, rows.positions, window)
    anchored = masks.anchor_mask(rows.segment_ids, rows.positions, groups.anchors, n, window)
    group = np.repeat(np.arange(num_anchors), n)
    own = np.tile(masks.own_group_mask(n, window), (num_anchors, num_anchors))
    own = own & (group[:, None] == group)  # [A * n, A * n]
    unseen = jnp.zeros((batch, clean.shape[1], num_anchors * n), bool)
    clean_rows = jnp.concatenate([clean, unseen], axis=2)
    own_everywhere = jnp.broadcast_to(own, (batch, *own.shape))
    group_rows = jnp.concatenate([anchored, own_everywhere], axis=2)
    return jnp.concatenate([clean_rows, group_rows], axis=1)
