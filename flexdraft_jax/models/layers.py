"""The parts of a decoder layer but attention: projections, norms, rotary embeddings, MLP."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.parallel.axes import check_axes


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Full precision for float32: TPUs and GPUs would multiply it in bf16 or TF32 otherwise."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    init: Callable[..., jax.Array],
    dtype: DTypeLike,
) -> jax.Array:
    """Declares a parameter: its shape, logical axes and initialiser on one line of the caller.

    Raises:
        ValueError: an axis that `LOGICAL_AXES` does not know.
    """
    check_axes(axes)
    # Flax boxes it only while it is initialised; everywhere else it is the array.
    return cast(
        jax.Array, module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype)
    )


class Linear(nn.Module):
    """`x @ kernel + bias`, with a 2-D kernel [in, out]: compilers lay those out best."""

    features: int
    axes: tuple[str, str]
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., in] -> [..., out]."""
        shape = (x.shape[-1], self.features)
        kernel = weight(
            self, "kernel", shape, self.axes, nn.initializers.lecun_normal(), self.dtype
        )
        y = jnp.matmul(x, kernel, precision=precision(x.dtype))
        if self.use_bias:
            y = y + weight(
                self, "bias", shape[1:], self.axes[1:], nn.initializers.zeros, self.dtype
            )
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; squares and mean in float32, as they decide."""

    config: TargetConfig
    axis: str = "embed"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., E] -> [..., E]."""
        c = self.config
        init = nn.initializers.zeros if c.zero_centered_norms else nn.initializers.ones
        scale = weight(self, "scale", x.shape[-1:], (self.axis,), init, self.dtype)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + c.rms_norm_eps)
        if c.zero_centered_norms:
            # One plus the scale would not fit bfloat16.
            return (wide * (1 + scale.astype(jnp.float32))).astype(x.dtype)
        return scale * wide.astype(x.dtype)


class Rope(NamedTuple):
    """Cosine and sine tables at some positions, each [B, T, 1, R], float32.

    R is what is rotated of a head, usually all of it.
    """

    cos: jax.Array
    sin: jax.Array


class RopeTables(NamedTuple):
    """Tables of the layers that see everything, and of those with a sliding window."""

    full: Rope
    windowed: Rope

    def of(self, window: int | None) -> Rope:
        """Those of a layer with this window."""
        return self.full if window is None else self.windowed


def rope_tables(config: TargetConfig, positions: jax.Array) -> RopeTables:
    """Rotary tables at `positions` [B, T]."""
    full = _rope(positions, _rope_frequencies(config))
    if config.local_rope_theta is None:
        return RopeTables(full, full)
    local = dataclasses.replace(config, rope_theta=config.local_rope_theta, rope_scaling=None)
    return RopeTables(full, _rope(positions, _rope_frequencies(local)))


def _rope(positions: jax.Array, frequencies: np.ndarray) -> Rope:
    angle = positions[..., None].astype(jnp.float32) * frequencies  # [B, T, R / 2]
    tables = jnp.cos(angle), jnp.sin(angle)
    # Joined last: XLA would otherwise compute sines again for each head of each layer.
    return Rope(*(jnp.concatenate([x, x], axis=-1)[:, :, None] for x in tables))


@functools.lru_cache
def _rope_frequencies(config: TargetConfig) -> np.ndarray:
    """Radians per position of each pair that is rotated, scaled as the config says."""
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / config.rotary_dim
    frequency = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling.rope_type == "linear":
        return frequency / np.float32(scaling.factor)
    # llama3: between the two wavelengths, a linear blend of the scaled and the plain frequency.
    context = scaling.original_max_position_embeddings
    turns = context * frequency / (2 * np.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - keep) * frequency / scaling.factor + keep * frequency).astype(np.float32)


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotates x [B, T, heads, H]; pair i is (x[i], x[i + R / 2]), as in Hugging Face models."""
    rotated = rope.cos.shape[-1]
    if rotated < x.shape[-1]:
        return jnp.concatenate([apply_rope(x[..., :rotated], rope), x[..., rotated:]], axis=-1)
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * rope.cos + turned * rope.sin).astype(x.dtype)


class Attention(nn.Module):
    """The four projections and the q/k norms. Targets and drafts have one of these each."""

    config: TargetConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Declares the parameters."""
        c = self.config
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        linear = functools.partial(Linear, dtype=self.dtype)
        self.q_proj = linear(queries, ("embed", "heads"), c.qkv_bias)
        self.k_proj = linear(keys, ("embed", "kv_heads"), c.qkv_bias)
        self.v_proj = linear(keys, ("embed", "kv_heads"), c.qkv_bias)
        self.o_proj = linear(c.hidden_size, ("heads", "embed"), c.o_bias)
        if c.qk_norm:
            self.q_norm = RMSNorm(c, "head_dim", self.dtype)
            self.k_norm = RMSNorm(c, "head_dim", self.dtype)

    def qkv(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, KeysValues]:
        """x: [B, T, E] -> queries [B, T, N, H], keys and values [B, K, T, H]."""
        queries = self._heads(self.q_proj(x), self.config.num_heads)
        keys = self._heads(self.k_proj(x), self.config.num_kv_heads)
        values = self._heads(self.v_proj(x), self.config.num_kv_heads)
        if self.config.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = apply_rope(queries, rope), apply_rope(keys, rope)
        scalar = self.config.query_pre_attn_scalar
        if scalar is not None:
            # Beside what attention divides by.
            queries = queries * (self.config.head_dim / scalar) ** 0.5
        # Where a token overflows, its keys tell all who see it. To the others its values have the
        # weight 0, and 0 * NaN or 0 * inf would be NaN.
        finite = jnp.isfinite(values)
        keys = jnp.where(finite & jnp.isfinite(keys), keys, jnp.nan)
        values = jnp.where(finite, values, 0)
        return queries, KeysValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))

    def output(self, values: jax.Array) -> jax.Array:
        """values: [B, T, N, H] -> [B, T, E]."""
        return self.o_proj(values.reshape(*values.shape[:2], -1))

    def _heads(self, x: jax.Array, num_heads: int) -> jax.Array:
        return x.reshape(*x.shape[:2], num_heads, self.config.head_dim)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
}


class MLP(nn.Module):
    """Gated MLP: `down(act(gate(x)) * up(x))`."""

    config: TargetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, T, E] -> [B, T, E]."""
        c = self.config
        linear = functools.partial(Linear, use_bias=c.mlp_bias, dtype=self.dtype)
        gate = linear(c.intermediate_size, ("embed", "mlp"), name="gate_proj")(x)
        up = linear(c.intermediate_size, ("embed", "mlp"), name="up_proj")(x)
        return linear(c.hidden_size, ("mlp", "embed"), name="down_proj")(
            ACTIVATIONS[c.hidden_act](gate) * up
        )
