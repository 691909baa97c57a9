"""Target and draft together: every pass that decoding and training make through both.

A pass reads the cache and returns what it made; it writes nothing. The split layer is where mask
tokens enter: below it only clean tokens exist, from it on both run through the same frozen norms
and MLPs, each with its own attention projections (FlexDraft paper, Attention Tuning).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.models import masks
from flexdraft_jax.models.attention import Backend, Part, attend
from flexdraft_jax.models.cache import Cache, KeysValues
from flexdraft_jax.models.draft import Draft, DraftModel
from flexdraft_jax.models.layers import rope_tables
from flexdraft_jax.models.scopes import StepPart
from flexdraft_jax.models.target import DecoderLayer, Params, Target, TargetModel
from flexdraft_jax.parallel.mesh import constrain_rows


class CleanPass(NamedTuple):
    """What clean tokens leave behind.

    Attributes:
        hidden: [B, T, E], final-normed.
        fresh: keys and values [B, K, T, H] of each of the L layers.
    """

    hidden: jax.Array
    fresh: tuple[KeysValues, ...]


class ParallelPass(NamedTuple):
    """What one parallel pass leaves behind.

    Attributes:
        clean: of the candidates.
        groups: [B, G, n, E], final-normed hidden states of every mask group.
    """

    clean: CleanPass
    groups: jax.Array


class PackedPass(NamedTuple):
    """What the clean tokens of packed rows leave behind for training.

    Attributes:
        hidden: [B, T, E], final-normed.
        fresh: keys and values [B, K, T, H] of each of the D draft layers; nothing of those below.
    """

    hidden: jax.Array
    fresh: tuple[KeysValues, ...]


class FlexDraft(nn.Module):
    """The frozen target and the trained draft, as two parameter trees side by side.

    Attributes:
        config: the target's.
        draft_config: None where no draft is needed; then only `clean_pass` and the heads work.
        dtype: of the weights and hidden states.
        mesh: that rows are spread over; None says nothing of where hidden states lie.
        attention: the name of its `Backend`, for the cache and the clean tokens of packed rows.
    """

    config: TargetConfig
    draft_config: DraftConfig | None = None
    dtype: DTypeLike = jnp.float32
    mesh: Mesh | None = None
    attention: str = "reference"

    def setup(self) -> None:
        """Declares the parameters."""
        self.backend = Backend(self.attention, self.mesh)
        self.target = TargetModel(self.config, self.dtype, self.backend)
        if self.draft_config is not None:
            self.draft = DraftModel(self.config, self.draft_config, self.dtype)
            self.split = self.config.num_layers - self.draft_config.num_draft_layers

    def clean_pass(self, tokens: jax.Array, length: jax.Array, cache: Cache) -> CleanPass:
        """Clean tokens behind the cache, through all layers, causally.

        Prefill, verification and plain decoding are this pass.

        Args:
            tokens: [B, T] at positions length..length+T-1.
            length: [B] tokens in the cache.
            cache: of all layers.
        """
        positions = length[:, None] + jnp.arange(tokens.shape[1])
        rope = rope_tables(self.config, positions)
        x = self._lay(self.target.embed(tokens))  # [B, T, E]
        fresh = []
        for index, layer in enumerate(self.target.layers):
            prefix = self._prefix(cache, index, length, positions)
            mask = masks.block_mask(tokens.shape[1], layer.window)
            with jax.named_scope(self._step_part(index)):
                x, layer_fresh = layer(x, rope.of(layer.window), mask, [prefix])
            x = self._lay(x)
            fresh.append(layer_fresh)
        return CleanPass(self._final_norm(x), tuple(fresh))

    @jax.named_scope(StepPart.MASK_TOKENS)
    def draft_pass(self, length: jax.Array, block_size: int, cache: Cache) -> jax.Array:
        """One mask group right behind the cache, through the draft layers only.

        Args:
            length: [B] tokens in the cache; the group lies at positions length..length+n-1.
            block_size: n.
            cache: of all layers.

        Returns:
            [B, n, E] final-normed.
        """
        positions = length[:, None] + jnp.arange(block_size)
        rope = rope_tables(self.config, positions)
        m = self._mask_tokens(length.shape[0], block_size)  # [B, n, E]
        for own, (index, layer) in zip(self.draft.layers, self._draft_layers(), strict=True):
            queries, group = own.qkv(layer.input_norm(m), rope.of(layer.window))
            prefix = self._prefix(cache, index, length, positions)
            group_mask = masks.own_group_mask(block_size, layer.window)
            values = attend(queries, [prefix, Part(group, group_mask)], self.backend)
            m = self._lay(layer.after_attention(m, own.output(values)))
        return self._final_norm(m)

    def parallel_pass(
        self,
        tokens: jax.Array,
        length: jax.Array,
        num_groups: int,
        block_size: int,
        cache: Cache,
    ) -> ParallelPass:
        """Candidates through all layers, with mask groups 0..G-1 riding along from the split on.

        Group k drafts for the case that exactly k drafts are accepted: it lies at positions
        length+k+1+(0..n-1) and sees the cache, candidates 0..k and itself.

        Args:
            tokens: [B, C] candidates at positions length..length+C-1.
            length: [B] tokens in the cache.
            num_groups: G <= C.
            block_size: n.
            cache: of all layers.
        """
        batch, num_candidates = tokens.shape
        positions = length[:, None] + jnp.arange(num_candidates)
        offsets = 1 + jnp.arange(num_groups)[:, None] + jnp.arange(block_size)  # [G, n]
        group_positions = length[:, None] + offsets.reshape(-1)  # [B, G * n]
        rope = rope_tables(self.config, positions)
        group_rope = rope_tables(self.config, group_positions)

        x = self._lay(self.target.embed(tokens))  # [B, C, E]
        fresh = []
        for index, layer in enumerate(self.target.layers[: self.split]):
            prefix = self._prefix(cache, index, length, positions)
            mask = masks.block_mask(num_candidates, layer.window)
            with jax.named_scope(StepPart.SHALLOW_LAYERS):
                x, layer_fresh = layer(x, rope.of(layer.window), mask, [prefix])
            x = self._lay(x)
            fresh.append(layer_fresh)

        # From here on candidates and mask tokens lie side by side: one matmul for both wherever
        # the weights are the same.
        both = jnp.concatenate([x, self._mask_tokens(batch, num_groups * block_size)], axis=1)
        for own, (index, layer) in zip(self.draft.layers, self._draft_layers(), strict=True):
            window = layer.window
            with jax.named_scope(StepPart.DRAFT_LAYERS):
                normed = layer.input_norm(both)  # [B, C + G * n, E]
                queries, layer_fresh = layer.attention.qkv(
                    normed[:, :num_candidates], rope.of(window)
                )
                parts = [
                    self._prefix(cache, index, length, positions),
                    Part(layer_fresh, masks.block_mask(num_candidates, window)),
                ]
                attended = layer.attention.output(attend(queries, parts, self.backend))
            with jax.named_scope(StepPart.MASK_TOKENS):
                queries, groups = own.qkv(normed[:, num_candidates:], group_rope.of(window))
                parts = [
                    self._prefix(cache, index, length, group_positions),
                    Part(
                        layer_fresh,
                        masks.group_block_mask(num_groups, block_size, num_candidates, window),
                    ),
                    Part(groups, masks.own_group_mask(block_size, window), num_groups),
                ]
                group_attended = own.output(attend(queries, parts, self.backend))
            with jax.named_scope(StepPart.DRAFT_LAYERS):
                attended = jnp.concatenate([attended, group_attended], axis=1)
                both = self._lay(layer.after_attention(both, attended))
            fresh.append(layer_fresh)
        both = self._final_norm(both)
        groups_hidden = both[:, num_candidates:].reshape(batch, num_groups, block_size, -1)
        return ParallelPass(CleanPass(both[:, :num_candidates], tuple(fresh)), groups_hidden)

    def packed_clean_pass(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> PackedPass:
        """Training: whole packed rows without a cache. Everything it returns is a constant.

        Args:
            tokens: [B, T].
            positions: [B, T], counted from the start of each document.
            segment_ids: [B, T], which document a token belongs to; each lies in one piece.
        """
        rope = rope_tables(self.config, positions)
        x = self._lay(self.target.embed(tokens))
        fresh = []
        for layer in self.target.layers:
            span = masks.segment_span(segment_ids, layer.window)
            x, layer_fresh = layer(x, rope.of(layer.window), span)
            x = self._lay(x)
            fresh.append(layer_fresh)
        constants = PackedPass(self._final_norm(x), tuple(fresh[self.split :]))
        return jax.lax.stop_gradient(constants)

    def packed_draft_pass(
        self,
        clean: PackedPass,
        positions: jax.Array,
        segment_ids: jax.Array,
        anchors: jax.Array,
        block_size: int,
        remat: bool = False,
    ) -> jax.Array:
        """Training: one mask group behind each anchor, through the draft layers.

        Args:
            clean: of the same rows.
            positions: [B, T], counted from the start of each document.
            segment_ids: [B, T], which document a token belongs to; each lies in one piece.
            anchors: [B, A] indices into T; anchor i's group lies at its position + 1 + (0..n-1).
            block_size: n.
            remat: keep only each layer's input for the gradient, and compute the layer again.

        Returns:
            [B, A, n, E] final-normed. Slot j predicts the token at anchor + 1 + j.
        """
        batch, num_anchors = anchors.shape
        start = jnp.take_along_axis(positions, anchors, axis=1) + 1  # [B, A]
        group_positions = (start[:, :, None] + jnp.arange(block_size)).reshape(batch, -1)
        rope = rope_tables(self.config, group_positions)

        def layer_pass(model: FlexDraft, d: int, m: jax.Array) -> jax.Array:
            own, layer = model.draft.layers[d], model.target.layers[model.split + d]
            window = layer.window
            anchor_span = masks.anchor_span(segment_ids, anchors, block_size, window)
            group_mask = masks.own_group_mask(block_size, window)
            queries, groups = own.qkv(layer.input_norm(m), rope.of(window))
            # The reference, as it has a gradient.
            values = attend(
                queries,
                [Part(clean.fresh[d], anchor_span), Part(groups, group_mask, num_anchors)],
            )
            return model._lay(layer.after_attention(m, own.output(values)))

        if remat:
            layer_pass = nn.remat(layer_pass, static_argnums=(1,))
        m = self._mask_tokens(batch, num_anchors * block_size)  # [B, A * n, E]
        for d in range(len(clean.fresh)):
            m = layer_pass(self, d, m)
        m = self._final_norm(m)
        return m.reshape(batch, num_anchors, block_size, -1)

    def target_logits(self, hidden: jax.Array) -> jax.Array:
        """Final-normed hidden states of clean tokens [..., E] -> [..., V] float32."""
        with jax.named_scope(StepPart.LM_HEAD):
            return self.target.logits(hidden)

    def draft_logits(self, hidden: jax.Array, bonus: jax.Array) -> jax.Array:
        """Calibrated logits of mask slots: the LM head plus the bonus-conditioned correction.

        Args:
            hidden: [B, ..., E] final-normed.
            bonus: [B, ...] token ids, with 1 where all entries of an axis of `hidden` share one.

        Returns:
            [B, ..., V] float32.
        """
        hidden = self._lay(hidden)
        bonus_embedding = jnp.broadcast_to(self._lay(self.target.embed(bonus)), hidden.shape)
        logits = self.target_logits(hidden)
        with jax.named_scope(StepPart.CALIBRATION):
            return logits + self.draft.calibration(bonus_embedding, hidden)

    def _step_part(self, index: int) -> StepPart:
        """Of a layer with clean tokens; without a draft, all are shallow."""
        deep = self.draft_config is not None and index >= self.split
        return StepPart.DRAFT_LAYERS if deep else StepPart.SHALLOW_LAYERS

    def _draft_layers(self) -> list[tuple[int, DecoderLayer]]:
        """(index, layer) of the target's last D layers."""
        return list(enumerate(self.target.layers))[self.split :]

    def _prefix(self, cache: Cache, index: int, length: jax.Array, positions: jax.Array) -> Part:
        window = self.config.layer_windows[index]
        return Part(cache.layer(index), masks.prefix_span(length, positions, window))

    def _mask_tokens(self, batch: int, num_tokens: int) -> jax.Array:
        shape = (batch, num_tokens, self.config.hidden_size)
        return self._lay(jnp.broadcast_to(self.draft.mask_embedding, shape))

    def _final_norm(self, x: jax.Array) -> jax.Array:
        """[B, ..., E] -> [B, ..., E]; what the head reads."""
        with jax.named_scope(StepPart.LM_HEAD):
            return self._lay(self.target.final_norm(x))

    def _lay(self, x: jax.Array) -> jax.Array:
        """Hidden states [B, ..., E] where their rows are."""
        return constrain_rows(x, self.mesh)


def flexdraft_model(
    target: Target,
    draft: Draft | None,
    attention: str = "reference",
    mesh: Mesh | None = None,
) -> FlexDraft:
    """The module for a target and its draft (or none), on a mesh (or one device)."""
    draft_config = None if draft is None else draft.config
    return FlexDraft(target.config, draft_config, target.dtype, mesh, attention)


def flexdraft_variables(target: Target, draft: Draft | None) -> dict[str, Params]:
    """The two parameter trees as `FlexDraft.apply` takes them."""
    params = {"target": target.params}
    return {"params": params if draft is None else {**params, "draft": draft.params}}
