"""A mixture of experts in the place of the MLP: each token goes through a few MLPs of many."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flexdraft_jax.config import Experts, TargetConfig
from flexdraft_jax.models.layers import ACTIVATIONS, precision, weight


class ExpertMLP(nn.Module):
    """The sum of k of X gated MLPs, which a router chooses for each token and weighs.

    All shapes are static, and no token is ever dropped. Few tokens (k of each are X at most) fetch
    the matrices of their own experts, and read no others. Many go through all X experts, those not
    chosen with weight 0: weights are read once, but the arithmetic is X / k times that of the
    chosen ones. Decoding waits for weights, so there that costs nothing until a chip has some
    hundred tokens in a pass; reading long prompts and training pay it in full.
    """

    config: TargetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, T, E] -> [B, T, E]."""
        c, experts = self.config, _experts(self.config)
        matrices = functools.partial(
            weight,
            self,
            init=nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0),
            dtype=self.dtype,
        )
        num_experts, width, inner = experts.number, c.hidden_size, c.intermediate_size
        gate = matrices("gate_proj", (num_experts, width, inner), ("experts", "embed", "mlp"))
        up = matrices("up_proj", (num_experts, width, inner), ("experts", "embed", "mlp"))
        down = matrices("down_proj", (num_experts, inner, width), ("experts", "mlp", "embed"))

        tokens = x.reshape(-1, c.hidden_size)  # [B * T, E]
        shares, chosen = self._route(tokens)
        einsum = functools.partial(jnp.einsum, precision=precision(x.dtype))
        act = ACTIVATIONS[c.hidden_act]
        if experts.fetched(len(tokens)):
            gate, up, down = gate[chosen], up[chosen], down[chosen]  # [B * T, k, E, F]
            hidden = act(einsum("TE,TkEF->TkF", tokens, gate)) * einsum("TE,TkEF->TkF", tokens, up)
            out = einsum("TkF,TkFE->TE", hidden * shares[..., None], down)
            return out.reshape(x.shape)
        hidden = act(einsum("TE,XEF->TXF", tokens, gate)) * einsum("TE,XEF->TXF", tokens, up)
        here = chosen[..., None] == jnp.arange(experts.number)  # [B * T, k, X]
        share = jnp.sum(jnp.where(here, shares[..., None], 0), axis=1)  # [B * T, X]
        # Chosen ones alone: where another overflows, 0 * inf would be NaN.
        hidden = jnp.where(jnp.any(here, axis=1)[..., None], hidden * share[..., None], 0)
        return einsum("TXF,XFE->TE", hidden, down).reshape(x.shape)

    def _route(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Shares and numbers of each token's experts, [T, E] -> [T, k]."""
        c, experts = self.config, _experts(self.config)
        kernel = weight(
            self,
            "router",
            (c.hidden_size, experts.number),
            ("embed", "experts"),
            nn.initializers.lecun_normal(),
            self.dtype,
        )
        # In float32, as it decides.
        logits = jnp.matmul(
            tokens, kernel, precision=precision(tokens.dtype), preferred_element_type=jnp.float32
        )
        shares, chosen = jax.lax.top_k(jax.nn.softmax(logits), experts.per_token)
        if experts.normalize:
            shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
        return shares.astype(tokens.dtype), chosen


def _experts(config: TargetConfig) -> Experts:
    assert config.experts is not None
    return config.experts
