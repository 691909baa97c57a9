"""Decoding on a slice that isn't there: whether it fits, what it sends, how fast it may be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Lowered

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.decoding.costs import Variant, draft_buckets, flex_variants
from flexdraft_jax.decoding.flex import FlexCosts
from flexdraft_jax.decoding.loop import read_prompt_chunk, run
from flexdraft_jax.decoding.program import DecodeProgram
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.rows import row_settings
from flexdraft_jax.decoding.sizes import prompt_chunk
from flexdraft_jax.decoding.state import DecodeState, init_state
from flexdraft_jax.models.cache import Cache, init_cache
from flexdraft_jax.models.draft import draft_shapes, draft_shardings
from flexdraft_jax.models.flexdraft import FlexDraft
from flexdraft_jax.models.target import target_shapes, target_shardings
from flexdraft_jax.parallel.axes import logical_axes
from flexdraft_jax.parallel.devices import Device
from flexdraft_jax.parallel.mesh import replicated, row_sharding, shardings
from flexdraft_jax.planning.compiling import abstract
from flexdraft_jax.planning.roofline import DecodeWork, MeshParts, StepWork, plain_batch


@dataclass(frozen=True)
class DecodeCase:
    """What is to be decoded where.

    Attributes:
        target: its shape.
        draft: its shape.
        mesh: of the slice's devices.
        batch_size: B, all rows together.
        num_slots: S of the cache: prompt, answer and a block.
        block_size: n.
        dtype: of weights and cache.
    """

    target: TargetConfig
    draft: DraftConfig
    mesh: Mesh
    batch_size: int
    num_slots: int
    block_size: int
    dtype: str = "bfloat16"

    @property
    def work(self) -> DecodeWork:
        """Counts its steps."""
        return DecodeWork(
            self.target,
            self.draft,
            self.block_size,
            self.dtype,
            MeshParts(**dict(self.mesh.shape)),
            self.num_slots,
        )

    @property
    def prompt_chunk(self) -> int:
        """P, prompt tokens of a row in one call."""
        return prompt_chunk(self.num_slots - self.block_size, self.batch_size)


@dataclass(frozen=True)
class DecodeStep:
    """A program to compile.

    Attributes:
        name: "prefill", "ar", "parallel 16", "sequential" or "flex".
        batch_size: B; of plain decoding not fewer than count.
        variants: of its steps.
    """

    name: str
    batch_size: int
    variants: tuple[Variant, ...]


def steps_of(case: DecodeCase, chip: Device, all_parallel: bool) -> list[DecodeStep]:
    """Prefill, plain decoding, the two schedules that verify everything, and flex.

    Args:
        case: what is decoded.
        chip: by whose costs flex chooses what it compiles.
        all_parallel: parallel steps that verify less, too.
    """
    rows, full = case.batch_size, case.block_size - 1
    plain = plain_batch(rows, case.work.mesh)
    parallel = [
        DecodeStep(f"parallel {count + 1}", rows, (Variant("parallel", count),))
        for count in (draft_buckets(case.block_size) if all_parallel else (full,))
    ]
    return [
        DecodeStep("prefill", rows, (Variant("sequential", 0),)),
        DecodeStep("ar", plain, (Variant("ar", 0),)),
        *parallel,
        DecodeStep("sequential", rows, (Variant("sequential", full),)),
        DecodeStep("flex", rows, flex_variants(case.work.costs(rows, chip))),
    ]


def lower_step(case: DecodeCase, step: DecodeStep) -> tuple[Lowered, dict[str, Any]]:
    """Traces the program that decoding would run, with shapes instead of arrays.

    Of flex, with the variants that are the cheaper ones by the roofline.

    Returns:
        What is to be compiled, and its arguments by what they are.

    Raises:
        ValueError: names every array that does not divide among the mesh.
    """
    plain = step.name == "ar"
    mesh, config = case.mesh, case.target
    dtype = jnp.dtype(case.dtype)
    block_size = 1 if plain else case.block_size
    target = abstract(target_shapes(config, dtype), target_shardings(config, mesh))
    params = {"target": target}
    if not plain:
        shapes = draft_shapes(config, case.draft, dtype)
        params["draft"] = abstract(shapes, draft_shardings(config, case.draft, mesh))
    state = abstract_state(case, step.batch_size, block_size)
    program = DecodeProgram(
        model=FlexDraft(config, None if plain else case.draft, dtype, mesh),
        block_size=block_size,
        pruning_strategy="cumulative_product",
        sampling="greedy",
        variants=step.variants,
    )
    whole = replicated(mesh)

    def array(shape: tuple[int, ...], dtype: Any, place: Any = whole) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    variables = {"params": params}
    parts = {
        "weights": target,
        "draft": params.get("draft", ()),
        "cache": state.cache,
        "rows": dataclasses.replace(state, cache=Cache((), ())),
    }
    if step.name == "prefill":
        rows = row_sharding(mesh, step.batch_size)
        size = (step.batch_size,)
        tokens = array((*size, case.prompt_chunk), jnp.int32, rows)
        counts, last = array(size, jnp.int32, rows), array(size, jnp.bool_, rows)
        lowered = read_prompt_chunk.lower(
            program.for_prefill(), variables, state, None, tokens, counts, last
        )
        return lowered, parts
    scalar = array((), jnp.int32)
    costs = None
    if step.name == "flex":
        costs = FlexCosts(array((len(step.variants),), jnp.float32), array((), jnp.bool_))
    return run.lower(program, variables, state, scalar, scalar, costs), parts


def abstract_state(case: DecodeCase, batch_size: int, block_size: int) -> DecodeState:
    """The state of a batch, as shapes that say where they lie."""
    rows = [Request(prompt=(0,), max_new_tokens=case.num_slots)] * batch_size

    def state() -> DecodeState:
        cache = init_cache(case.target, batch_size, case.num_slots, case.dtype)
        return init_state(case.target, cache, block_size=block_size, **row_settings(rows))

    shapes = jax.eval_shape(state)
    return abstract(shapes, shardings(case.mesh, logical_axes(shapes), shapes, case.target))


def step_work(case: DecodeCase, step: DecodeStep) -> StepWork:
    """What a step does by the roofline; of flex, the largest."""
    if step.name == "prefill":
        return case.work.prefill(case.prompt_chunk, step.batch_size)
    return case.work.step(step.variants[-1], step.batch_size)
