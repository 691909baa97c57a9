"""Counted arithmetic against the products of matrices in the traced programs."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from flexdraft_jax.config import DraftConfig, Experts
from flexdraft_jax.models.draft import Draft, draft_shapes
from flexdraft_jax.models.target import Target, TargetModel, target_shapes
from flexdraft_jax.training.config import (
    OptimizerConfig,
    TargetModelConfig,
    TrainDraftConfig,
)
from flexdraft_jax.training.draft_loop import make_draft_step
from flexdraft_jax.training.flops import draft_step_flops, peak_flops, target_step_flops
from flexdraft_jax.training.optimizer import TrainState, make_optimizer
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.target_loop import make_target_step

_BATCH, _LENGTH, _ANCHORS = 2, 8, 3
_TRAIN = OptimizerConfig(steps=10, batch_size=_BATCH, learning_rate=1e-3)
_TARGET = TargetModelConfig(num_layers=3, hidden_size=64, num_heads=4, num_kv_heads=2).build(
    96, (0,)
)
_ROWS = Rows(
    **{
        name: np.zeros((_BATCH, _LENGTH), dtype)
        for name, dtype in (
            ("tokens", np.int32),
            ("segment_ids", np.int32),
            ("positions", np.int32),
            ("response_mask", np.bool_),
        )
    }
)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _state(params: Any) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(_TRAIN).init(params))


def _matmul_flops(jaxpr: Any) -> int:
    """2abc of every product [a, b] x [b, c] in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner_jaxpr in jaxprs_in_params(equation.params):
            total += repeats * _matmul_flops(inner_jaxpr)
    return total


def test_of_a_target_step() -> None:
    params = _zeros(target_shapes(_TARGET))
    step = make_target_step(TargetModel(_TARGET), make_optimizer(_TRAIN), "all")
    traced = _matmul_flops(jax.make_jaxpr(step)(_state(params), _ROWS).jaxpr)
    # The program computes the masked half of attention too, little in such short rows.
    expected = target_step_flops(_TARGET, batch_size=_BATCH, length=_LENGTH)
    assert expected == pytest.approx(traced, rel=0.05)


@pytest.mark.parametrize("experts", [None, Experts(number=4, per_token=2, normalize=True)])
def test_of_a_draft_step(experts: Experts | None) -> None:
    of_target = dataclasses.replace(_TARGET, experts=experts)
    draft_config = DraftConfig(num_draft_layers=2, block_size=4, calibration_rank=16)
    config = TrainDraftConfig(model=draft_config, train=_TRAIN, anchors=_ANCHORS)
    target = Target(of_target, _zeros(target_shapes(of_target)))
    draft = Draft(draft_config, _zeros(draft_shapes(of_target, draft_config)))
    step = make_draft_step(config, target, make_optimizer(_TRAIN))
    traced = _matmul_flops(jax.make_jaxpr(step)(_state(draft.params), _ROWS).jaxpr)
    sizes = {"batch_size": _BATCH, "length": _LENGTH, "anchors": _ANCHORS}
    done = draft_step_flops(of_target, draft_config, **sizes, all_experts=True)
    assert done == pytest.approx(traced, rel=0.05)
    # Two of four experts are needed, and counted for the MFU.
    needed = draft_step_flops(of_target, draft_config, **sizes)
    assert (needed < 0.8 * done) if experts else (needed == done)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
        ("TPU v9", None),
    ],
)
def test_peaks_by_kind_of_device(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak
