"""The compiled programs: prefill, and the `while_loop` around a step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.acceptance import Verdict
from flexdraft_jax.decoding.state import DecodeState
from flexdraft_jax.decoding.steps import (
    DecodeProgram,
    Variables,
    emit,
    first_block,
    step,
    target_token,
)
from flexdraft_jax.models.cache import commit


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def prefill(
    program: DecodeProgram,
    variables: Variables,
    state: DecodeState,
    prompts: jax.Array,
    prompt_length: jax.Array,
) -> DecodeState:
    """Reads the prompts, emits each row's first token and drafts its first candidate block.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: fresh from `init_state`; donated.
        prompts: [B, P], padded on the right with any token of the vocabulary. P <= S.
        prompt_length: [B] tokens, at least 1.
    """
    clean = program.apply(variables, "clean_pass", prompts, state.length, state.cache)
    last = jnp.take_along_axis(clean.hidden, (prompt_length - 1)[:, None, None], axis=1)
    logits = program.apply(variables, "target_logits", last)  # [B, 1, V]
    bonus = target_token(program, logits, state, prompt_length[:, None])[:, 0]
    state = dataclasses.replace(
        state,
        cache=commit(state.cache, clean.fresh, state.length, state.active),
        length=prompt_length,
    )
    state = first_block(program, variables, state, bonus)
    # The prompt's own token is the bonus of no step.
    return emit(state, Verdict(jnp.zeros_like(bonus), bonus))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run(
    program: DecodeProgram,
    variables: Variables,
    state: DecodeState,
    max_steps: jax.Array,
    costs: jax.Array | None = None,
) -> DecodeState:
    """Decodes until every row is finished, `max_steps` are done, or a row's cache is full.

    Full means that fewer than n slots are left, so that the next block might not fit; a caller
    that comes back with a grown cache goes on from there.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: after `prefill`; donated.
        max_steps: scalar.
        costs: [variants] of a step of each, by which flex chooses; None takes the smallest that
            verifies all that is to be verified.
    """

    def cond_fn(carry: tuple[jax.Array, DecodeState]) -> jax.Array:
        done, state = carry
        full = state.length + program.block_size > state.cache.num_slots
        return (done < max_steps) & jnp.any(state.active) & ~jnp.any(state.active & full)

    def body_fn(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        done, state = carry
        return done + 1, step(program, variables, state, costs)

    return jax.lax.while_loop(cond_fn, body_fn, (jnp.int32(0), state))[1]
