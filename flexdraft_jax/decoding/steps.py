"""One decoding step: `DecodeState -> DecodeState`.

The four moves of a step (FlexDraft paper, Flex Decoding):

    verify    candidates 0..v through all layers; accept a drafts; the target's next token is the
              bonus
    commit    keep the keys and values of the bonus and the accepted drafts: length += a + 1
    emit      the accepted drafts and the bonus
    draft     mask group k = a, calibrated with the bonus, becomes the next candidate block

A "sequential" step makes them one after the other, in two passes. A "parallel" step drafts for
every possible a in the pass that verifies, and picks the group when a is known. Both compute the
same numbers. An "ar" step drafts nothing; with v = 0 it is plain decoding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.acceptance import Verdict, accept_by_rejection, accept_matching
from flexdraft_jax.decoding.confidence import (
    choose_verify_length,
    slot_confidence,
    survival_curve,
)
from flexdraft_jax.decoding.costs import Variant
from flexdraft_jax.decoding.flex import (
    DraftHistory,
    FlexCosts,
    choose_variant,
    empty_history,
    note_block,
    note_verdict,
)
from flexdraft_jax.decoding.program import DecodeProgram, Variables
from flexdraft_jax.decoding.sampling import (
    Purpose,
    draw_token,
    greedy_token,
    probabilities,
    uniform,
)
from flexdraft_jax.decoding.state import (
    ERROR,
    LENGTH,
    RUNNING,
    STOP,
    CandidateBlock,
    DecodeState,
    put_columns,
    select_rows,
)
from flexdraft_jax.models.cache import KeysValues, commit
from flexdraft_jax.models.scopes import StepPart


def next_variant(
    program: DecodeProgram, state: DecodeState, flex_costs: FlexCosts | None
) -> jax.Array:
    """Index of the step to take next.

    Args:
        program: the compiled choices.
        state: before the step.
        flex_costs: by which flex chooses; None takes the smallest variant that holds the largest v,
            or the last. What a larger one computes beyond a row's v is thrown away.
    """
    if flex_costs is None:
        longest = jnp.max(jnp.where(state.active, state.block.verify_length, 0))
        smaller = jnp.array([variant.num_drafts for variant in program.variants[:-1]])
        return jnp.sum(smaller < longest)
    remaining = jnp.where(state.active, state.budget - state.num_emitted, 0)
    return choose_variant(
        program.variants, flex_costs, state.history, state.block.survival, remaining
    )


def step(
    program: DecodeProgram, variables: Variables, state: DecodeState, variant: Variant
) -> DecodeState:
    """One step, for all rows that still decode.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: before the step.
        variant: which of the program's; no row verifies more drafts than it holds.
    """
    before, num_drafts = state, variant.num_drafts
    verify_length = jnp.minimum(state.block.verify_length, num_drafts)
    block = dataclasses.replace(state.block, verify_length=verify_length)
    state = dataclasses.replace(state, block=block)
    slots = None
    if variant.schedule == "parallel":
        fresh, verdict, slots = _verify_and_draft(program, variables, num_drafts, state)
    else:
        fresh, verdict = _verify(program, variables, num_drafts, state)
    state = _log(_commit(state, fresh, verdict), verdict, num_drafts)
    state = emit(program, state, verdict, num_drafts)  # Comes last, as it finishes rows.
    if variant.schedule == "sequential":
        slots = _draft_group(program, variables, state)
    if slots is None:
        block, history = _undrafted_block(state.block, verdict.bonus), state.history
    else:
        block = _next_block(program, variables, state, slots, verdict.bonus)
        history = note_block(state.history, block.survival)
    # Rows that were finished have no new block. What else they have is frozen on writing.
    new, old = (block, history), (before.block, state.history)
    block, history = select_rows(before.active, new, old)
    return dataclasses.replace(state, block=block, history=history)


def _draft_group(program: DecodeProgram, variables: Variables, state: DecodeState) -> jax.Array:
    """Hidden states [B, n, E] of the mask group right behind the cache."""
    return program.apply(variables, "draft_pass", state.length, program.block_size, state.cache)


def _undrafted_block(block: CandidateBlock, bonus: jax.Array) -> CandidateBlock:
    """A block with nothing to verify behind its bonus."""
    return dataclasses.replace(
        block,
        tokens=block.tokens.at[:, 0].set(bonus),
        verify_length=jnp.zeros_like(block.verify_length),
        survival=jnp.zeros_like(block.survival),
    )


@jax.named_scope(StepPart.DRAFTS)
def _next_block(
    program: DecodeProgram,
    variables: Variables,
    state: DecodeState,
    hidden: jax.Array,
    bonus: jax.Array,
) -> CandidateBlock:
    """Calibrates a mask group with its bonus and reads the next candidates from it.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: in which the bonus is to stand at position `length`.
        hidden: [B, n, E] final-normed hidden states of the group.
        bonus: [B] the token at the group's first position.
    """
    logits = _draft_logits(program, variables, hidden[:, 1:], bonus)
    if program.sampling == "greedy":
        drafts = greedy_token(logits)  # [B, n - 1]
    else:
        positions = state.length[:, None] + 1 + jnp.arange(logits.shape[1])
        # Drafts with the target's own noise are the likelier to be its choice.
        purpose = Purpose.TOKEN if program.sampling == "coupled" else Purpose.DRAFT
        drafts = draw_token(logits, state.sampling, positions, purpose)
    # From distributions alone, never from the drafts: rejection would be biased otherwise.
    confidence = slot_confidence(logits)
    if program.forced_acceptance is not None:
        # Asks for the confidence that it puts aside, or XLA would save the work.
        confidence = jnp.where(confidence >= 0, program.forced_acceptance, 0.0)
    verify_length = choose_verify_length(
        confidence, state.confidence_threshold, program.pruning_strategy
    )
    return CandidateBlock(
        tokens=jnp.concatenate([bonus[:, None], drafts], axis=1),
        verify_length=verify_length,
        survival=survival_curve(confidence, verify_length),
        hidden=hidden,
    )


def first_block(
    program: DecodeProgram,
    variables: Variables,
    state: DecodeState,
    bonus: jax.Array,
    wanted: jax.Array,
) -> DecodeState:
    """Drafts the candidates behind prompts that have just been committed; histories begin.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: of rows that read.
        bonus: [B] the prompts' next tokens.
        wanted: scalar bool, whether any prompt ends here; without, nothing is drafted.
    """
    if not program.drafts:
        return dataclasses.replace(state, block=_undrafted_block(state.block, bonus))

    def draft(_: Any) -> tuple[jax.Array, CandidateBlock, DraftHistory]:
        hidden = _draft_group(program, variables, state)
        block = _next_block(program, variables, state, hidden, bonus)
        history = note_block(empty_history(len(bonus), program.block_size), block.survival)
        return jnp.zeros_like(wanted), block, history

    # Once or not at all: XLA keeps what is inside of a `cond` on a single core of a CPU.
    nothing = wanted, state.block, state.history
    _, block, history = jax.lax.while_loop(lambda carry: carry[0], draft, nothing)
    return dataclasses.replace(state, block=block, history=history)


def emit(
    program: DecodeProgram, state: DecodeState, verdict: Verdict, num_drafts: int
) -> DecodeState:
    """Appends the accepted drafts and the bonus, up to a stop token or the budget.

    Where the target's logits are NaN the bonus is no token (see `greedy_token`): it is left out,
    and the row is finished. No more than `num_drafts` can have been accepted.
    """
    slot = jnp.arange(num_drafts + 1)
    # Draft j + 1 in slot j; what is in the last one, behind all that can be accepted, is not read.
    drafts = jnp.roll(state.block.tokens[:, : len(slot)], -1, axis=1)
    a = verdict.num_accepted[:, None]
    emitted = jnp.where(slot < a, drafts, verdict.bonus[:, None])  # [B, v + 1], valid up to a

    remaining = (state.budget - state.num_emitted)[:, None]
    valid = (slot <= a) & (slot < remaining)
    stops = valid & jnp.any(emitted[:, :, None] == state.stop_token_ids[:, None, :], axis=-1)
    stopped = jnp.any(stops, axis=1)
    # Up to the first stop token, itself included.
    valid &= jnp.cumsum(stops, axis=1) - stops == 0
    is_token = emitted < program.model.config.vocab_size
    failed = jnp.any(valid & ~is_token, axis=1)
    count = jnp.where(state.active, jnp.sum(valid & is_token, axis=1), 0)
    num_emitted = state.num_emitted + count
    finished = jnp.where(num_emitted >= state.budget, LENGTH, RUNNING)
    finished = jnp.where(stopped, STOP, jnp.where(failed, ERROR, finished))

    size = state.tokens.shape[1]
    column = state.num_emitted[:, None] + slot
    column = jnp.where(slot < count[:, None], column, size)
    return dataclasses.replace(
        state,
        tokens=put_columns(state.tokens, column, emitted),
        num_emitted=num_emitted,
        finish_reason=jnp.where(state.active, finished, state.finish_reason),
    )


def target_token(
    program: DecodeProgram, logits: jax.Array, state: DecodeState, positions: jax.Array
) -> jax.Array:
    """The target's choice for each of the positions [B, C]: [B, C, V] -> [B, C]."""
    if program.sampling == "greedy":
        return greedy_token(logits)
    return draw_token(logits, state.sampling, positions, Purpose.TOKEN)


def _verify(
    program: DecodeProgram, variables: Variables, num_drafts: int, state: DecodeState
) -> tuple[tuple[KeysValues, ...], Verdict]:
    """The verify pass of the sequential schedule, and all of a plain step."""
    candidates = state.block.tokens[:, : num_drafts + 1]
    clean = program.apply(variables, "clean_pass", candidates, state.length, state.cache)
    verdict = _judge(program, variables, clean.hidden, state)
    return clean.fresh, verdict


def _verify_and_draft(
    program: DecodeProgram, variables: Variables, num_drafts: int, state: DecodeState
) -> tuple[tuple[KeysValues, ...], Verdict, jax.Array]:
    """The pass of the parallel schedule: mask groups 0..v ride along in the draft layers."""
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
    verdict = _judge(program, variables, both.clean.hidden, state)
    picked = verdict.num_accepted[:, None, None, None]
    hidden = jnp.take_along_axis(both.groups, picked, axis=1)[:, 0]  # [B, n, E]
    return both.clean.fresh, verdict, hidden


@jax.named_scope(StepPart.ACCEPTANCE)
def _judge(
    program: DecodeProgram, variables: Variables, hidden: jax.Array, state: DecodeState
) -> Verdict:
    """The target's judgement on candidates whose hidden states are [B, C, E]."""
    block, num_candidates = state.block, hidden.shape[1]
    logits = program.apply(variables, "target_logits", hidden)
    candidates = block.tokens[:, :num_candidates]
    positions = state.length[:, None] + 1 + jnp.arange(num_candidates)
    if program.sampling != "rejection" or program.forced_acceptance is not None:
        predicted = target_token(program, logits, state, positions)
        if program.forced_acceptance is not None:
            lucky = uniform(state.sampling, positions, Purpose.ACCEPT) < program.forced_acceptance
            predicted = _forced(predicted, candidates, lucky, program.model.config.vocab_size)
        return accept_matching(predicted, candidates, block.verify_length)
    bonus = candidates[:, 0]
    drafted = _draft_logits(program, variables, block.hidden[:, 1:num_candidates], bonus)
    return accept_by_rejection(
        probabilities(logits, state.sampling),
        probabilities(drafted, state.sampling),
        candidates,
        block.verify_length,
        state.sampling,
        positions,
    )


def _forced(
    predicted: jax.Array, candidates: jax.Array, lucky: jax.Array, vocab_size: int
) -> jax.Array:
    """The target's tokens [B, C], changed so that they agree with the drafts where `lucky`."""
    following = jnp.roll(candidates, -1, axis=1)
    # Its own token where it may be: the target has to be asked, or XLA would save the work.
    other = (predicted + (predicted == following)) % vocab_size
    return jnp.where(lucky, following, other)


def _draft_logits(
    program: DecodeProgram, variables: Variables, hidden: jax.Array, bonus: jax.Array
) -> jax.Array:
    """Calibrated logits [B, C, V] of mask slots [B, C, E] behind each row's bonus."""
    logits = program.apply(variables, "draft_logits", hidden, bonus[:, None])
    # A draft may be any token, but it must be one: NaN has none.
    return jnp.where(jnp.isnan(logits), 0.0, logits)


@jax.named_scope(StepPart.CACHE_WRITE)
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


def _log(state: DecodeState, verdict: Verdict, num_drafts: int) -> DecodeState:
    """Counts the step and notes its a + 1 and v, and how good its drafts were."""
    block = state.block
    # A row that is finished writes behind the last entry, and mode="drop" discards it.
    entry = jnp.where(state.active, state.num_steps, state.acceptance_lengths.shape[1])[:, None]
    # Of what can have been verified alone: in a plain step nothing, which costs nothing.
    survival = block.survival[:, :num_drafts]
    # Of a row that is finished nothing is verified any more: what it has taught is forgotten.
    judged, accepted = (
        jnp.where(state.active, count, 0) for count in (block.verify_length, verdict.num_accepted)
    )
    return dataclasses.replace(
        state,
        num_steps=state.num_steps + state.active,
        history=note_verdict(state.history, survival, judged, accepted),
        acceptance_lengths=put_columns(
            state.acceptance_lengths, entry, verdict.num_accepted[:, None] + 1
        ),
        verify_lengths=put_columns(state.verify_lengths, entry, block.verify_length[:, None]),
    )
