"""A training step on a slice that isn't there: whether it fits, what it sends, what it takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Lowered

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.models.draft import check_num_draft_layers, draft_shapes, draft_shardings
from flexdraft_jax.models.target import target_shapes, target_shardings
from flexdraft_jax.parallel.mesh import row_sharding
from flexdraft_jax.planning.compiling import abstract
from flexdraft_jax.planning.roofline import Part, StepWork
from flexdraft_jax.training.config import MeshConfig, TrainDraftConfig
from flexdraft_jax.training.distributed import state_places
from flexdraft_jax.training.draft_step import draft_step
from flexdraft_jax.training.flops import draft_step_flops
from flexdraft_jax.training.optimizer import first_state, make_optimizer
from flexdraft_jax.training.rows import Rows


@dataclass(frozen=True)
class TrainCase:
    """What is to be trained where.

    Attributes:
        target: its shape.
        config: of the run; its mesh gives way to `mesh`.
        mesh: of the slice's devices.
        sequence_length: T, tokens of a packed row.
    """

    target: TargetConfig
    config: TrainDraftConfig
    mesh: Mesh
    sequence_length: int


def lower_train_step(case: TrainCase) -> tuple[Lowered, dict[str, Any]]:
    """Traces the step that training runs, with shapes instead of arrays.

    Returns:
        What is to be compiled, and its arguments by what they are.

    Raises:
        ValueError: names every array that does not divide among the mesh; or settings that training
            would refuse.
    """
    mesh, target = case.mesh, case.target
    config = dataclasses.replace(case.config, mesh=MeshConfig(**dict(mesh.shape)))
    check_num_draft_layers(config.model, target)
    shapes = target_shapes(target, jnp.dtype(config.step.compute_dtype))
    frozen = abstract(shapes, target_shardings(target, mesh))
    optimizer = make_optimizer(config.train)
    shapes = draft_shapes(target, config.model)
    state = jax.eval_shape(lambda params: first_state(params, optimizer), shapes)
    places = state_places(mesh, state, draft_shardings(target, config.model, mesh))
    state = abstract(state, places)
    row_place = row_sharding(mesh, config.train.batch_size)
    size = (config.train.batch_size, case.sequence_length)

    def column(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(size, dtype, sharding=row_place)

    rows = Rows(column(jnp.int32), column(jnp.int32), column(jnp.int32), column(jnp.bool_))
    step = draft_step(config, target, optimizer, places)
    parts = {
        "weights": frozen,
        "draft": state.params,
        "optimizer": (state.opt_state, state.step),
        "rows": rows,
    }
    return step.lower(state, frozen, rows), parts


def train_work(case: TrainCase) -> StepWork:
    """What a chip does in a step, but for messages.

    Arithmetic is that of `training/flops.py`. Traffic: every matrix for each part of the batch and
    of the groups that it is multiplied with, and the optimizer's state; activations are left out,
    as arithmetic is what such a step waits for.
    """
    config, target = case.config, case.target
    batch, tensor = config.train.batch_size, case.mesh.shape["tensor"]
    flops = draft_step_flops(
        target,
        config.model,
        batch_size=batch,
        length=case.sequence_length,
        anchors=config.anchors,
        all_experts=True,
    )
    item = jnp.dtype(config.step.compute_dtype).itemsize
    chunks = config.anchors // (config.step.chunk or config.anchors)
    head = target.vocab_size * target.hidden_size
    calibration = config.model.calibration_weights(target)
    drafting = config.model.num_draft_layers
    # Forward, and backward to what a layer was given.
    group = 2 * drafting * target.layer_weights + 3 * head + 3 * calibration
    read = config.step.microbatches * (target.num_layers * target.layer_weights + chunks * group)
    trained = drafting * target.attention_weights + calibration
    # Parameters and two means are read and written, gradients are added up.
    updates = 4 * 8 * trained / (case.mesh.shape["fsdp"] * tensor)
    return StepWork((Part(flops / case.mesh.size, item * read / tensor + updates),), ())
