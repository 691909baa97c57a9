"""The draft: attention of its own in the last D layers, a mask embedding, a calibration MLP."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.models.layers import Attention, Linear, rope_tables, weight
from flexdraft_jax.models.target import Params, Target, check_is_key
from flexdraft_jax.parallel.mesh import mesh_of, put, shardings


class Calibration(nn.Module):
    """Bonus-guided Calibration: what the draft logits change by, once the bonus is known.

    `W2 silu(W1 concat(embed(bonus), h) + b1) + b2` (FlexDraft paper, Bonus-guided Calibration).
    """

    vocab_size: int
    rank: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, bonus: jax.Array, hidden: jax.Array) -> jax.Array:
        """bonus embedding [..., E], final-normed hidden state [..., E] -> [..., V] float32."""
        x = jnp.concatenate([bonus, hidden], axis=-1)  # [..., 2E]
        x = Linear(
            self.rank,
            ("calibration_in", "calibration_rank"),
            use_bias=True,
            dtype=self.dtype,
            name="hidden",
        )(x)
        out = Linear(
            self.vocab_size,
            ("calibration_rank", "vocab"),
            use_bias=True,
            dtype=self.dtype,
            name="output",
        )
        return out(nn.silu(x)).astype(jnp.float32)


class DraftModel(nn.Module):
    """The only trained parameters."""

    config: TargetConfig
    draft_config: DraftConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Declares the parameters."""
        c, d = self.config, self.draft_config
        init = nn.initializers.normal(0.02)
        self.mask_embedding = weight(
            self, "mask_embedding", (c.hidden_size,), ("embed",), init, self.dtype
        )
        self.layers = [Attention(c, self.dtype) for _ in range(d.num_draft_layers)]
        self.calibration = Calibration(c.vocab_size, d.calibration_rank, self.dtype)

    def __call__(self) -> None:
        """Touches every parameter once; `init` needs that, nothing else does."""
        width = jnp.zeros((1, 1, self.config.hidden_size), self.dtype)
        rope = rope_tables(self.config, jnp.zeros((1, 1), jnp.int32)).full
        for layer in self.layers:
            queries, _ = layer.qkv(width, rope)
            layer.output(queries)
        self.calibration(width, width)


@dataclasses.dataclass(frozen=True)
class Draft:
    """Trained draft parameters and their shape.

    Attributes:
        config: D, n and r.
        params: the weights, as `draft_shapes` lays them out.
    """

    config: DraftConfig
    params: Params


def draft_shapes(
    config: TargetConfig, draft_config: DraftConfig, dtype: DTypeLike = jnp.float32
) -> Params:
    """The parameter tree with a `jax.ShapeDtypeStruct` at every leaf; computes nothing."""
    init = functools.partial(_boxed_params, config, draft_config, dtype)
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def draft_logical_axes(config: TargetConfig, draft_config: DraftConfig) -> Params:
    """The parameter tree with a `PartitionSpec` of logical axes at every leaf."""
    init = functools.partial(_boxed_params, config, draft_config, jnp.float32)
    return nn.get_partition_spec(jax.eval_shape(init, jax.random.key(0)))


def draft_shardings(config: TargetConfig, draft_config: DraftConfig, mesh: Mesh) -> Params:
    """Where every weight lies on the mesh; as `target_shardings`."""
    axes = draft_logical_axes(config, draft_config)
    return shardings(mesh, axes, draft_shapes(config, draft_config), config)


def spread_draft(draft: Draft, target: Target) -> Draft:
    """The draft with its weights beside those of its target.

    Args:
        draft: whole on this process.
        target: on a mesh or not.
    """
    return Draft(draft.config, _beside(draft.params, draft.config, target))


def _beside(params: Params, config: DraftConfig, target: Target) -> Params:
    mesh = mesh_of(target.params)
    if mesh is None:
        return params
    return put(params, draft_shardings(target.config, config, mesh))


def init_draft(
    target: Target,
    *,
    num_draft_layers: int,
    block_size: int,
    calibration_rank: int,
    rng: jax.Array,
) -> Draft:
    """An untrained draft: the target's own projections, a small random mask, no calibration.

    It lies where the target does.

    Args:
        target: the model to draft for.
        num_draft_layers: D, 1 to the target's number of layers.
        block_size: n to train with, at least 2.
        calibration_rank: r.
        rng: a `jax.random.key`, for the mask embedding and the calibration's first layer.

    Raises:
        ValueError: a size out of range.
        TypeError: a size that is no integer, or no key.
    """
    check_is_key(rng)
    config = target.config
    draft_config = DraftConfig(num_draft_layers, block_size, calibration_rank)
    check_num_draft_layers(draft_config, config)
    params = nn.meta.unbox(_boxed_params(config, draft_config, target.dtype, rng))
    params = _beside(params, draft_config, target)
    split = config.num_layers - num_draft_layers
    for d in range(num_draft_layers):
        # Copies, so that donating the draft's buffers never takes the target's away.
        attention = target.params[f"layers_{split + d}"]["attention"]
        params[f"layers_{d}"] = jax.tree.map(jnp.copy, attention)
    params["calibration"]["output"] = jax.tree.map(jnp.zeros_like, params["calibration"]["output"])
    return Draft(draft_config, params)


def check_draft_fits(draft: Draft, config: TargetConfig) -> None:
    """Raises ValueError, naming each weight and both shapes, if `draft` is for another target."""
    check_num_draft_layers(draft.config, config)
    expected = _expected_shapes(config, draft.config)
    found = _shapes_by_path(draft.params)
    wrong = [
        f"{path} is {found.get(path, 'missing')} and should be {expected.get(path, 'absent')}"
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]
    if wrong:
        raise ValueError("draft: made for another target: " + "; ".join(wrong))


@functools.cache  # Tracing the module takes longer than some answers.
def _expected_shapes(config: TargetConfig, draft_config: DraftConfig) -> dict[str, tuple[int, ...]]:
    return _shapes_by_path(draft_shapes(config, draft_config))


def _shapes_by_path(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def check_num_draft_layers(draft_config: DraftConfig, config: TargetConfig) -> None:
    """Raises ValueError where the draft has more layers than the target."""
    if draft_config.num_draft_layers > config.num_layers:
        raise ValueError(
            f"num_draft_layers={draft_config.num_draft_layers}: must be at most the target's "
            f"num_layers={config.num_layers}"
        )


def _boxed_params(
    config: TargetConfig, draft_config: DraftConfig, dtype: DTypeLike, rng: jax.Array
) -> Params:
    return DraftModel(config, draft_config, dtype).init(rng)["params"]
