"""The compiled programs: reading prompts, admitting rows, and the loops around a step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.acceptance import Verdict
from flexdraft_jax.decoding.flex import FlexCosts
from flexdraft_jax.decoding.program import DecodeProgram, Variables
from flexdraft_jax.decoding.sampling import RowSampling
from flexdraft_jax.decoding.state import (
    LOADING,
    RUNNING,
    DecodeState,
    init_state,
    place_rows,
    put_rows,
    select_rows,
    take_rows,
)
from flexdraft_jax.decoding.steps import (
    emit,
    first_block,
    next_variant,
    step,
    target_token,
)
from flexdraft_jax.models.cache import Cache, commit, init_cache

# Of plain steps, flex takes as many before it chooses again.
_PLAIN_STEPS = 4
# Steps done, what comes next (the index of a variant or, behind the last, why none), the batch.
Carry = tuple[jax.Array, jax.Array, DecodeState]


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def read_prompt_chunk(
    program: DecodeProgram,
    variables: Variables,
    state: DecodeState,
    rows: jax.Array | None,
    tokens: jax.Array,
    count: jax.Array,
    last: jax.Array,
) -> DecodeState:
    """Reads the next part of some rows' prompts, behind what they have read.

    A row whose prompt ends with it emits its first token and drafts its first candidate block.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: donated.
        rows: [R] rows that are loading, each once, or B for none; None stands for all rows, none
            of which may be running.
        tokens: [R, P], padded on the right with any token of the vocabulary.
        count: [R] tokens to read of each, up to P; 0 reads nothing.
        last: [R] bool, whether the prompt ends with them.
    """
    part = state
    if rows is not None:
        part = take_rows(state, rows)
    clean = program.apply(variables, "clean_pass", tokens, part.length, part.cache)
    part = dataclasses.replace(
        part,
        cache=commit(part.cache, clean.fresh, part.length, count > 0),
        length=part.length + count,
        finish_reason=jnp.where(
            last & (part.finish_reason == LOADING), RUNNING, part.finish_reason
        ),
    )
    end = jnp.maximum(count - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(clean.hidden, end, axis=1)  # [R, 1, E]
    logits = program.apply(variables, "target_logits", hidden)
    bonus = target_token(program, logits, part, part.length[:, None])[:, 0]
    # A row that reads on may get a block that means nothing, and gets another one later.
    part = first_block(program, variables, part, bonus, jnp.any(last))
    # The prompt's own token is the bonus of no step.
    part = emit(program, part, Verdict(jnp.zeros_like(bonus), bonus), num_drafts=0)
    if rows is None:
        return program.place(part)
    # Always true, but it makes the write wait for every read of the old cache, as in a step.
    rows = jnp.where(bonus >= 0, rows, len(state.length))
    return program.place(put_rows(state, rows, part))


def first_state(
    program: DecodeProgram, num_slots: int, dtype: DTypeLike, settings: dict[str, Any]
) -> DecodeState:
    """A batch that has read nothing, made where it lies.

    Args:
        program: the compiled choices.
        num_slots: S.
        dtype: of the cache.
        settings: arguments of `init_state`.
    """
    config = program.model.config
    return _make_state(config, program.block_size, program.mesh, num_slots, dtype, settings)


# Compiled, so that no device of a mesh ever holds all of it, and as one call is faster than thirty.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _make_state(
    config: TargetConfig,
    block_size: int,
    mesh: Mesh | None,
    num_slots: int,
    dtype: DTypeLike,
    settings: dict[str, Any],
) -> DecodeState:
    cache = init_cache(config, len(settings["budget"]), num_slots, dtype)
    return place_rows(init_state(config, cache, block_size=block_size, **settings), mesh, config)


@functools.partial(
    jax.jit, static_argnames=("config", "block_size", "mesh"), donate_argnames="state"
)
def admit(
    config: TargetConfig,
    block_size: int,
    mesh: Mesh | None,
    state: DecodeState,
    admitted: jax.Array,
    budget: jax.Array,
    stop_token_ids: jax.Array,
    confidence_threshold: jax.Array,
    sampling: RowSampling,
) -> DecodeState:
    """Starts some rows over with other requests, whose prompts are still to be read.

    Args:
        config: the target's.
        block_size: n.
        mesh: that rows are spread over, if any.
        state: donated.
        admitted: [B] bool, rows to start over. The settings of rows that read or run must be what
            they were.
        budget: [B], as for `init_state`, like the rest.
        stop_token_ids: [B, M].
        confidence_threshold: [B].
        sampling: of the B rows.
    """
    settings: dict[str, Any] = {
        "budget": budget,
        "stop_token_ids": stop_token_ids,
        "confidence_threshold": confidence_threshold,
        "sampling": sampling,
    }
    fresh = init_state(config, state.cache, block_size=block_size, **settings)

    # The cache may keep what it holds: a row of length 0 sees none of it.
    nothing = Cache((), ())
    old = dataclasses.replace(state, **settings, cache=nothing)
    chosen = select_rows(admitted, dataclasses.replace(fresh, cache=nothing), old)
    return place_rows(dataclasses.replace(chosen, cache=state.cache), mesh, config)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run(
    program: DecodeProgram,
    variables: Variables,
    state: DecodeState,
    max_steps: jax.Array,
    min_active: jax.Array,
    flex_costs: FlexCosts | None = None,
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Decodes until `max_steps` are done, too few rows are left, or the next step does not fit.

    A caller that comes back with a larger cache goes on from there.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: donated.
        max_steps: scalar.
        min_active: scalar, at least 1; decodes while this many rows are running.
        flex_costs: by which flex chooses; None for the other schedules.

    Returns:
        The state, how many steps were done, and whether it takes a larger cache to go on.
    """

    ended = len(program.variants)
    full = ended + 1
    num_candidates = jnp.array([variant.num_drafts + 1 for variant in program.variants])

    def ready(done: jax.Array, state: DecodeState, index: jax.Array) -> Carry:
        """For the next step, of the variant `index` if there is one."""
        needed = jnp.max(jnp.where(state.active, state.length, 0)) + num_candidates[index]
        index = jnp.where(needed > state.cache.num_slots, full, index)
        goes_on = (done < max_steps) & (jnp.sum(state.active) >= min_active)
        return done, jnp.where(goes_on, index, ended), state

    def steps_of(index: int, carry: Carry) -> Carry:
        """Steps as long as they are of this variant."""
        variant = program.variants[index]

        def body(carry: Carry) -> Carry:
            done, _, state = carry
            # At both ends, or the compiler would choose for what is carried from step to step.
            state = step(program, variables, program.place(state), variant)
            state = program.place(state)
            if variant.drafts or flex_costs is None:
                return ready(done + 1, state, next_variant(program, state, flex_costs))
            # Plain steps teach little, and are so short that even the choice counts.
            following = jax.lax.cond(
                done % _PLAIN_STEPS == 0,
                lambda: next_variant(program, state, flex_costs),
                lambda: jnp.int32(index),
            )
            return ready(done + 1, state, following)

        return jax.lax.while_loop(lambda carry: carry[1] == index, body, carry)

    def steps_of_each(carry: Carry) -> Carry:
        for index in range(ended):
            carry = steps_of(index, carry)
        return carry

    state = program.place(state)
    carry = ready(jnp.int32(0), state, next_variant(program, state, flex_costs))
    # A loop for each variant: the cases of a `switch` would have to agree in shapes, and XLA keeps
    # operations inside of one on a single core of a CPU.
    if ended == 1:
        carry = steps_of_each(carry)
    else:
        carry = jax.lax.while_loop(lambda carry: carry[1] < ended, steps_of_each, carry)
    done, index, state = carry
    return program.place(state), done, index == full
