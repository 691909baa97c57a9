"""The frozen decoder: embedding, layers, and the head on top."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.config import TargetConfig, check_kind
from flexdraft_jax.models import masks
from flexdraft_jax.models.attention import REFERENCE, Backend, Part, attend
from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.models.experts import ExpertMLP
from flexdraft_jax.models.layers import (
    MLP,
    Attention,
    Linear,
    RMSNorm,
    Rope,
    precision,
    rope_tables,
    weight,
)
from flexdraft_jax.parallel.mesh import check_is_mesh, put, shardings

Params = dict[str, Any]


class DecoderLayer(nn.Module):
    """One layer: attention and MLP, each behind a norm and around a residual."""

    config: TargetConfig
    window: int | None
    dtype: DTypeLike = jnp.float32
    backend: Backend = REFERENCE

    def setup(self) -> None:
        """Declares the parameters."""
        norm = functools.partial(RMSNorm, self.config, "embed", self.dtype)
        self.input_norm = norm()
        self.attention = Attention(self.config, self.dtype)
        self.post_attention_norm = norm()
        self.mlp = (MLP if self.config.experts is None else ExpertMLP)(self.config, self.dtype)
        if self.config.output_norms:
            self.attention_output_norm = norm()
            self.mlp_output_norm = norm()

    def __call__(
        self,
        x: jax.Array,
        rope: Rope,
        mask: jax.Array | np.ndarray | masks.Span,
        prefix: Sequence[Part] = (),
    ) -> tuple[jax.Array, KeysValues]:
        """Clean tokens attend to `prefix` and, under `mask`, to each other.

        Args:
            x: [B, T, E].
            rope: this layer's, at the tokens' positions.
            mask: broadcasts to [B, T, T].
            prefix: what lies before these tokens: the cache.

        Returns:
            x [B, T, E] and the tokens' keys and values [B, K, T, H].
        """
        queries, fresh = self.attention.qkv(self.input_norm(x), rope)
        values = attend(queries, [*prefix, Part(fresh, mask)], self.backend)
        return self.after_attention(x, self.attention.output(values)), fresh

    def after_attention(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The rest of the layer, for the target's own attention and for a draft's.

        Args:
            x: [B, T, E], what the layer was given.
            attended: [B, T, E], what attention made of it.

        Returns:
            [B, T, E]
        """
        x = self.add_attention(x, attended)
        out = self.mlp(self.post_attention_norm(x))
        return x + (self.mlp_output_norm(out) if self.config.output_norms else out)

    def add_attention(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The residual around attention, [B, T, E]."""
        return x + (self.attention_output_norm(attended) if self.config.output_norms else attended)


class TargetModel(nn.Module):
    """The whole target. Parameters may be float32 or bfloat16; logits are float32."""

    config: TargetConfig
    dtype: DTypeLike = jnp.float32
    backend: Backend = REFERENCE

    def setup(self) -> None:
        """Declares the parameters."""
        c = self.config
        self.embed = Embedding(c, self.dtype)
        self.layers = [
            DecoderLayer(c, window, self.dtype, self.backend) for window in c.layer_windows
        ]
        self.final_norm = RMSNorm(c, "embed", self.dtype)
        if not c.tie_word_embeddings:
            self.lm_head = Linear(c.vocab_size, ("embed", "vocab"), dtype=self.dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of whole sequences, without a cache.

        Args:
            tokens: [B, T].
            positions: [B, T]; 0..T-1 if left out.
            segment_ids: [B, T] which packed document a token belongs to, each in one piece; one if
                left out.

        Returns:
            [B, T, V] float32.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.zeros_like(tokens)
        x = self.embed(tokens)  # [B, T, E]
        rope = rope_tables(self.config, positions)
        for layer in self.layers:
            x, _ = layer(x, rope.of(layer.window), masks.segment_span(segment_ids, layer.window))
        return self.logits(self.final_norm(x))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The LM head: final-normed hidden states [..., E] -> [..., V] float32."""
        if self.config.tie_word_embeddings:
            return self.embed.attend(hidden)
        return self.lm_head(hidden).astype(jnp.float32)


class Embedding(nn.Module):
    """The token table, which a tied LM head reads a second time."""

    config: TargetConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Declares the table [V, E]."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        init = nn.initializers.normal(self.config.hidden_size**-0.5)
        self.embedding = weight(self, "embedding", shape, ("vocab", "embed"), init, self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens: [...] -> [..., E]."""
        embedded = self.embedding[tokens]
        if self.config.scale_embeddings:
            # The factor is rounded too, as in Hugging Face.
            return embedded * jnp.asarray(self.config.hidden_size**0.5, embedded.dtype)
        return embedded

    def attend(self, hidden: jax.Array) -> jax.Array:
        """hidden: [..., E] -> logits [..., V] float32."""
        return jnp.einsum(
            "...E,VE->...V", hidden, self.embedding, precision=precision(hidden.dtype)
        ).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Target:
    """A frozen model and its weights.

    Attributes:
        config: its shape.
        params: the weights, as `target_shapes` lays them out.
    """

    config: TargetConfig
    params: Params

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weights, and so of hidden states and cache."""
        return self.params["embed"]["embedding"].dtype

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, as the checkpoint says."""
        return self.config.eos_token_ids


def target_shapes(config: TargetConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """The parameter tree with a `jax.ShapeDtypeStruct` at every leaf; computes nothing."""
    return nn.meta.unbox(_boxed_shapes(config, dtype))


def target_logical_axes(config: TargetConfig) -> Params:
    """The parameter tree with a `PartitionSpec` of logical axes at every leaf."""
    return nn.get_partition_spec(_boxed_shapes(config, jnp.float32))


def target_shardings(config: TargetConfig, mesh: Mesh) -> Params:
    """Where every weight lies on the mesh.

    Raises:
        ValueError: names every weight that does not divide.
    """
    return shardings(mesh, target_logical_axes(config), target_shapes(config), config)


def spread_target(target: Target, mesh: Mesh) -> Target:
    """The target with its weights spread over the mesh; `target` is whole on this process."""
    return Target(target.config, put(target.params, target_shardings(target.config, mesh)))


def init_target(
    config: TargetConfig,
    rng: jax.Array,
    dtype: DTypeLike = jnp.float32,
    *,
    mesh: Mesh | None = None,
) -> Target:
    """A target with random weights.

    Args:
        config: its shape.
        rng: a `jax.random.key`.
        dtype: of the weights.
        mesh: to spread them over as they are made; None is the usual device.

    Raises:
        ValueError: a weight does not divide among the mesh's devices.
        TypeError: the config, the key or the mesh is none.
    """
    check_kind("config", config, TargetConfig)
    check_is_key(rng)
    check_is_mesh(mesh)
    model = TargetModel(config, dtype)
    places = None if mesh is None else target_shardings(config, mesh)

    def init(rng: jax.Array) -> Params:
        return nn.meta.unbox(model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"])

    return Target(config, jax.jit(init, out_shardings=places)(rng))


def check_is_key(rng: Any) -> None:
    """Raises TypeError for what is no key of random numbers, new or old."""
    try:
        jax.eval_shape(jax.random.bits, rng)
    except (OverflowError, TypeError, ValueError) as error:
        raise TypeError(f"rng={rng!r}: must be a jax.random.key") from error


def _boxed_shapes(config: TargetConfig, dtype: DTypeLike) -> Params:
    model = TargetModel(config, dtype)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
