"""The optimizer of both training programs: clipping, a schedule, AdamW or Muon."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from flexdraft_jax.training.config import OptimizerConfig

Params = Any


@struct.dataclass
class TrainState:
    """What a training step consumes and returns; donated, so only the newest one is alive.

    Attributes:
        step: [] int32, steps already taken.
        params: the trained parameters, and nothing else: a frozen target never stands here.
            Float32 whatever a step computes in, as bfloat16 would round small updates away.
        opt_state: optax's state for exactly these parameters.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def first_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with float32 copies of `params`: donating it is safe."""
    masters = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), masters, optimizer.init(masters))


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after one step of the optimizer; `gradients` are shaped like the parameters."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up, then cosine or constant-and-linear ("wsd") decay to zero."""
    warmup = max(1, round(config.steps * config.warmup_fraction))
    peak = config.learning_rate
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.steps, warmup + 1))
    if config.warmup_fraction + config.decay_fraction > 1:
        raise ValueError(
            f"train.warmup_fraction={config.warmup_fraction} and "
            f"train.decay_fraction={config.decay_fraction}: must be at most 1 together"
        )
    decay = max(1, round(config.steps * config.decay_fraction))
    hold_until = max(warmup, config.steps - decay)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        [warmup, hold_until],
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW or Muon with the configured schedule.

    Weight decay acts on matrices only: shrinking norms' scales and biases has no use. Muon
    (arXiv 2502.16982) takes the matrices, scaled to the size of Adam's updates so that one learning
    rate serves both; embedding, head, norms and biases stay with Adam.
    """
    schedule = learning_rate_schedule(config)
    if config.optimizer == "muon":
        update = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=_hidden_matrices,
            consistent_rms=0.2,
        )
    else:
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _hidden_matrices(params: Params) -> Params:
    """Marks the matrices between hidden states; vocabulary-sized ones belong to Adam."""

    def mark(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path)
        vocabulary = "embed" in names or "lm_head" in names or "calibration" in names
        return optax.contrib.MuonDimensionNumbers() if leaf.ndim == 2 and not vocabulary else None

    return jax.tree_util.tree_map_with_path(mark, params)
