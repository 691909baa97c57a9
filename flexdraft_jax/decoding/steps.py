"""One decoding step per schedule: `DecodeState -> DecodeState`.

The four moves of a step (FlexDraft paper, Flex Decoding):

    verify    candidates 0..v through all layers; accept a drafts; the target's next token is the
              bonus
    commit    keep the keys and values of the bonus and the accepted drafts: length += a + 1
    emit      the accepted drafts and the bonus
    draft     mask group k = a, calibrated with the bonus, becomes the next candidate block

`sequential_step` makes them one after the other, in two passes. `parallel_step` drafts for every
possible a in the pass that verifies, and picks the group when a is known. Both compute the same
numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.acceptance import Verdict, accept_greedy
from flexdraft_jax.decoding.confidence import choose_verify_length, slot_confidence
from flexdraft_jax.decoding.state import LENGTH, RUNNING, STOP, CandidateBlock, DecodeState
from flexdraft_jax.models.cache import KeysValues, commit
from flexdraft_jax.models.flexdraft import FlexDraft

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """What is compiled into the loop; two equal programs share one compilation per shape.

    Attributes:
        model: target and draft modules.
        schedule: "ar", "parallel" or "sequential".
        block_size: n; 1 for "ar".
        pruning_strategy: how confidence becomes a verify length.
        verify_buckets: ascending numbers of drafts that a step is compiled for. A step takes the
            smallest that holds the batch's largest v; the last one is n - 1.
    """

    model: FlexDraft
    schedule: str
    block_size: int
    pruning_strategy: str
    verify_buckets: tuple[int, ...]

    def apply(self, variables: Variables, method: str, *args: Any) -> Any:
        """Calls one of the model's passes."""
        return self.model.apply(variables, *args, method=method)

    def for_prefill(self) -> "DecodeProgram":
        """The choices that prefill depends on, so that schedules share its compilation."""
        schedule = "ar" if self.schedule == "ar" else "sequential"
        return dataclasses.replace(self, schedule=schedule, verify_buckets=())


def ar_step(program: DecodeProgram, variables: Variables, state: DecodeState) -> DecodeState:
    """Plain decoding: one clean token in, the next one out."""
    clean = program.apply(variables, "clean_pass", state.block.tokens, state.length, state.cache)
    verdict = _verify(program, variables, clean.hidden, state.block)
    stepped = _commit_and_emit(state, clean.fresh, verdict)
    block = dataclasses.replace(state.block, tokens=verdict.bonus[:, None])
    return _keep_finished(state, dataclasses.replace(stepped, block=block))


def sequential_step(
    program: DecodeProgram, variables: Variables, state: DecodeState
) -> DecodeState:
    """A verify pass through all layers, then a draft pass through the draft layers."""

    def verify(num_drafts: int, state: DecodeState) -> Any:
        candidates = state.block.tokens[:, : num_drafts + 1]
        clean = program.apply(variables, "clean_pass", candidates, state.length, state.cache)
        verdict = _verify(program, variables, clean.hidden, state.block)
        return _padded(clean.fresh, program.block_size), verdict

    fresh, verdict = _by_verify_length(program, verify, state)
    stepped = _commit_and_emit(state, fresh, verdict)
    hidden = program.apply(
        variables, "draft_pass", stepped.length, program.block_size, stepped.cache
    )
    block = next_block(program, variables, hidden, verdict.bonus, state.confidence_threshold)
    return _keep_finished(state, dataclasses.replace(stepped, block=block))


def parallel_step(program: DecodeProgram, variables: Variables, state: DecodeState) -> DecodeState:
    """One pass: mask groups 0..v ride along with candidates 0..v in the draft layers."""

    def verify_and_draft(num_drafts: int, state: DecodeState) -> Any:
        candidates = state.block.tokens[:, : num_drafts + 1]
        both = program.apply(
            variables,
            "parallel_pass",
            candidates,
            state.length,
            num_drafts + 1,
            program.block_size,
            state.cache,
        )
        verdict = _verify(program, variables, both.clean.hidden, state.block)
        picked = verdict.num_accepted[:, None, None, None]
        hidden = jnp.take_along_axis(both.groups, picked, axis=1)[:, 0]  # [B, n, E]
        return _padded(both.clean.fresh, program.block_size), verdict, hidden

    fresh, verdict, hidden = _by_verify_length(program, verify_and_draft, state)
    stepped = _commit_and_emit(state, fresh, verdict)
    block = next_block(program, variables, hidden, verdict.bonus, state.confidence_threshold)
    return _keep_finished(state, dataclasses.replace(stepped, block=block))


STEPS = {"ar": ar_step, "parallel": parallel_step, "sequential": sequential_step}


def next_block(
    program: DecodeProgram,
    variables: Variables,
    hidden: jax.Array,
    bonus: jax.Array,
    confidence_threshold: jax.Array,
) -> CandidateBlock:
    """Calibrates a mask group with its bonus and reads the next candidates from it.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        hidden: [B, n, E] final-normed hidden states of the group.
        bonus: [B] the token at the group's first position.
        confidence_threshold: [B].
    """
    logits = program.apply(variables, "draft_logits", hidden[:, 1:], bonus[:, None])
    # A draft may be any token, but it must be one.
    drafts = jnp.minimum(greedy_token(logits), logits.shape[-1] - 1)  # [B, n - 1]
    return CandidateBlock(
        tokens=jnp.concatenate([bonus[:, None], drafts], axis=1),
        verify_length=choose_verify_length(
            slot_confidence(logits), confidence_threshold, program.pruning_strategy
        ),
        hidden=hidden,
    )


def first_block(
    program: DecodeProgram, variables: Variables, state: DecodeState, bonus: jax.Array
) -> CandidateBlock:
    """The candidates behind a prompt that has just been committed."""
    if program.schedule == "ar":
        return dataclasses.replace(state.block, tokens=bonus[:, None])
    hidden = program.apply(variables, "draft_pass", state.length, program.block_size, state.cache)
    return next_block(program, variables, hidden, bonus, state.confidence_threshold)


def emit(state: DecodeState, verdict: Verdict) -> DecodeState:
    """Appends the accepted drafts and the bonus, up to a stop token or the budget."""
    rows = jnp.arange(state.length.shape[0])
    slot = jnp.arange(state.block.tokens.shape[1])
    drafts = jnp.roll(state.block.tokens, -1, axis=1)  # draft j + 1 in slot j
    a = verdict.num_accepted[:, None]
    emitted = jnp.where(slot < a, drafts, verdict.bonus[:, None])  # [B, n], valid up to slot a

    remaining = (state.budget - state.num_emitted)[:, None]
    valid = (slot <= a) & (slot < remaining)
    stops = valid & jnp.any(emitted[:, :, None] == state.stop_token_ids[:, None, :], axis=-1)
    stopped = jnp.any(stops, axis=1)
    # Up to the first stop token, itself included.
    valid &= jnp.cumsum(stops, axis=1) - stops == 0
    count = jnp.where(state.active, jnp.sum(valid, axis=1), 0)
    num_emitted = state.num_emitted + count
    finished = jnp.where(stopped, STOP, jnp.where(num_emitted >= state.budget, LENGTH, RUNNING))

    size = state.tokens.shape[1]
    column = state.num_emitted[:, None] + slot
    column = jnp.where(slot < count[:, None], column, size)
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows[:, None], column].set(emitted, mode="drop"),
        num_emitted=num_emitted,
        finish_reason=jnp.where(state.active, finished, state.finish_reason),
    )


def greedy_token(logits: jax.Array) -> jax.Array:
    """The first largest entry: [..., V] -> [...] int32; V, which is no token, where one is NaN.

    Two plain reductions vectorise where `argmax`, a reduction over pairs, does not: on a CPU they
    take a ninth of its time at 8 x 2048.
    """
    size = logits.shape[-1]
    top = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == top, jnp.arange(size), size), axis=-1).astype(jnp.int32)


def _verify(
    program: DecodeProgram, variables: Variables, hidden: jax.Array, block: CandidateBlock
) -> Verdict:
    """The target's judgement on candidates whose hidden states are [B, C, E]."""
    predicted = greedy_token(program.apply(variables, "target_logits", hidden))
    return accept_greedy(predicted, block.tokens[:, : hidden.shape[1]], block.verify_length)


def _by_verify_length(
    program: DecodeProgram, step: Callable[[int, DecodeState], Any], state: DecodeState
) -> Any:
    """Runs the static variant that holds the largest v of the rows that still decode.

    A row's own v is not touched: what a larger variant computes beyond it is thrown away.
    """
    longest = jnp.max(jnp.where(state.active, state.block.verify_length, 0))
    buckets = jnp.array(program.verify_buckets)
    variants = [lambda s, v=v: step(v, s) for v in program.verify_buckets]
    return jax.lax.switch(jnp.searchsorted(buckets, longest), variants, state)


def _padded(fresh: tuple[KeysValues, ...], size: int) -> tuple[KeysValues, ...]:
    """Fresh keys and values [B, K, C, H], padded to [B, K, size, H]: variants agree in shape."""
    missing = size - fresh[0].keys.shape[2]
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))), fresh)


def _commit_and_emit(
    state: DecodeState, fresh: tuple[KeysValues, ...], verdict: Verdict
) -> DecodeState:
    """Commits, logs and emits; emitting comes last, as it finishes rows."""
    return emit(_log(_commit(state, fresh, verdict), verdict), verdict)


def _commit(state: DecodeState, fresh: tuple[KeysValues, ...], verdict: Verdict) -> DecodeState:
    """Puts the verified tokens into the cache and forgets the rejected ones by the length alone."""
    # Always true where `active` is, but it makes the write wait for the verdict, and so for every
    # read of the old cache. Without that order XLA has to keep the old cache: a whole copy a layer.
    decided = state.active & (verdict.bonus >= 0)
    return dataclasses.replace(
        state,
        cache=commit(state.cache, fresh, state.length, decided),
        length=state.length + jnp.where(state.active, verdict.num_accepted + 1, 0),
    )


def _log(state: DecodeState, verdict: Verdict) -> DecodeState:
    """Counts the step and notes its a + 1 and v."""
    rows = jnp.arange(state.length.shape[0])
    # A row that is finished writes behind the last entry, and mode="drop" discards it.
    entry = jnp.where(state.active, state.num_steps, state.acceptance_lengths.shape[1])
    return dataclasses.replace(
        state,
        num_steps=state.num_steps + state.active,
        acceptance_lengths=state.acceptance_lengths.at[rows, entry].set(
            verdict.num_accepted + 1, mode="drop"
        ),
        verify_lengths=state.verify_lengths.at[rows, entry].set(
            state.block.verify_length, mode="drop"
        ),
    )


def _keep_finished(before: DecodeState, after: DecodeState) -> DecodeState:
    """Rows that were finished keep their block; the rest of them is frozen where it is written."""

    def keep(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(before.active.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return dataclasses.replace(after, block=jax.tree.map(keep, before.block, after.block))
