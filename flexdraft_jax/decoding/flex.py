"""Flex: which step comes next, by what steps cost and what drafts have been worth.

Decoding is taken for a process that goes on for ever, and the step is chosen that earns the most
tokens per millisecond in the long run; of drafts those count that an answer still has room for.
Whatever is chosen, greedy and coupled tokens are the same.

A draft is accepted with the probability that its confidence and those before it promise together,
raised to a power: the batch's hazard ratio, how many rejections there have been for each that
confidence foretold. (To first order: where chances of rejection are large it is milder than the
truth.) No power mends a draft that is sure and wrong, so where fewer drafts are accepted than that
promises, all of it counts for so much less: trust. Both are traits of the draft and the text, where
a row by itself shows luck besides. They know past verdicts alone, never a draft of the block that
is to be verified: rejection would be biased otherwise. Verdicts are forgotten from step to step,
those of rows that have ended too.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.costs import Variant
from flexdraft_jax.parallel.axes import array_field

# What is left of a sum after each step: a hundred blocks are remembered, as a poor passage says
# little of the rest of an answer, and fifty verdicts.
_BLOCK_DECAY, _VERDICT_DECAY = 0.99, 0.98
# A batch without a past is judged as if so many rejections had been foretold, and come, and trusted
# as if so many promised drafts had been accepted.
_PRIOR = 16.0
# Survival from draft to draft of a block that every row begins with, in thought: hopeful, as one
# poor block at the start of an answer says little.
_HOPE = 0.96
# Steps without a draft before one is made to see whether drafting has come to pay: so many that it
# takes this share of their time where drafting nearly pays, and less where it does not, by this
# power of its rate for that of plain steps; but not fewer and not more than this, and only where as
# many tokens can follow.
_LOOKING, _LOOKING_POWER, _PATIENCE = 0.3, 24.0, (8, 255)
# The power is half of that where so few blocks are remembered: at the start of an answer, whose
# first blocks may be unlike the rest, and where all but looks are plain steps.
_FEW_BLOCKS = 2.0
# How far the rows count that will end first, where the batch has to wait for the last.
_SLOWNESS_POWER = 4.0


@flax.struct.dataclass
class FlexCosts:
    """What flex chooses by, beside the drafts.

    Attributes:
        costs: [variants] of a step of each; in any unit.
        refilled: scalar bool, whether rows that end make place for others: then a token is worth
            the same in every row. If not, the batch lasts as long as its last row, and only what
            brings that one on is worth much.
    """

    costs: jax.Array
    refilled: jax.Array


@flax.struct.dataclass
class DraftHistory:
    """What the drafts of each row have been worth.

    Attributes:
        rejected: [B] float32, decaying sum of rejections, at most one of a block.
        foretold: [B] float32, how many their confidences had foretold.
        accepted: [B] float32, decaying sum of accepted drafts.
        promised: [B] float32, how many were to be expected by the hazard ratio of their time.
        survival: [B, n - 1] float32, decaying sum of the survival curves of drafted blocks, each
            raised to the hazard ratio of its time.
        blocks: [B] float32, the same sum of ones.
        idle: [B] int32, steps since a block was drafted.
    """

    rejected: jax.Array = array_field("batch")
    foretold: jax.Array = array_field("batch")
    accepted: jax.Array = array_field("batch")
    promised: jax.Array = array_field("batch")
    survival: jax.Array = array_field("batch", "block")
    blocks: jax.Array = array_field("batch")
    idle: jax.Array = array_field("batch")


def empty_history(batch_size: int, block_size: int) -> DraftHistory:
    """Of rows that have drafted nothing yet; n is 1 where nothing is ever drafted."""
    return DraftHistory(
        rejected=jnp.zeros(batch_size),
        foretold=jnp.zeros(batch_size),
        accepted=jnp.zeros(batch_size),
        promised=jnp.zeros(batch_size),
        survival=jnp.tile(_HOPE ** jnp.arange(1.0, block_size), (batch_size, 1)),
        blocks=jnp.ones(batch_size),
        idle=jnp.zeros(batch_size, jnp.int32),
    )


def note_verdict(
    history: DraftHistory, survival: jax.Array, verify_length: jax.Array, num_accepted: jax.Array
) -> DraftHistory:
    """The history after a block was judged.

    Args:
        history: before.
        survival: [B, n - 1] of the block.
        verify_length: [B] v, how many of its drafts were verified.
        num_accepted: [B] a.
    """
    before = jnp.pad(survival, ((0, 0), (1, 0)), constant_values=1.0)[:, :-1]
    hazard = 1.0 - survival / jnp.maximum(before, jnp.finfo(jnp.float32).tiny)
    slots = jnp.arange(survival.shape[1])
    # Nobody knows what became of drafts behind a rejected one.
    judged = slots < jnp.minimum(num_accepted + 1, verify_length)[:, None]
    verified = slots < verify_length[:, None]
    promised = jnp.sum(survival ** _hazard_ratio(history), axis=1, where=verified)
    return dataclasses.replace(
        history,
        rejected=_VERDICT_DECAY * history.rejected + (num_accepted < verify_length),
        foretold=_VERDICT_DECAY * history.foretold + jnp.sum(hazard, axis=1, where=judged),
        accepted=_VERDICT_DECAY * history.accepted + num_accepted,
        promised=_VERDICT_DECAY * history.promised + promised,
        idle=history.idle + 1,
    )


def note_block(history: DraftHistory, survival: jax.Array) -> DraftHistory:
    """The history after a block with this survival curve [B, n - 1] was drafted."""
    kept = _BLOCK_DECAY**history.idle
    return dataclasses.replace(
        history,
        survival=kept[:, None] * history.survival + survival ** _hazard_ratio(history),
        blocks=kept * history.blocks + 1.0,
        idle=jnp.zeros_like(history.idle),
    )


def choose_variant(
    variants: Sequence[Variant],
    flex_costs: FlexCosts,
    history: DraftHistory,
    survival: jax.Array,
    remaining: jax.Array,
) -> jax.Array:
    """Index of the step that earns the most.

    With c the costs, N the rows that decode, a(v) the drafts that all of them may accept of v and
    have room for, both weighted by what a token is worth in each row, and a(v) less what the last
    row is late by:

        R   the best rate of one kind of step for ever: (N + a(v)) / c with a usual block each
            time, or N / c without drafts, less the most that looks may take of it: so who drafts
            goes on where plain steps would win next to nothing
        W   what a block is worth to the next step, in tokens. Where drafting is the best, as much
            as it costs to get one back: R * (cheapest c that drafts) - N; else nothing

    A step earns the a(v) of the block that is there, and W if it drafts; its time would have
    earned R * c. But for the looks, those are the values of an average-reward decision process with
    two states, a usual block or none.

    Args:
        variants: to choose from; the first is "ar", the others draft.
        flex_costs: costs of each.
        history: of the rows.
        survival: [B, n - 1] of the block that is there.
        remaining: [B] tokens that each row may still emit; 0 of one that has ended.
    """
    costs, active = flex_costs.costs, remaining > 0
    num_drafts = jnp.array([variant.num_drafts for variant in variants])
    trust = _trust(history)
    usual = trust * history.survival / history.blocks[:, None]
    weight, pace = _wait_for_last(usual, remaining)
    weight = jnp.where(flex_costs.refilled, active, weight)
    pace = jnp.where(flex_costs.refilled, 1.0, pace)
    rows = jnp.sum(weight)
    # A step's last token is its bonus, and a usual block comes a step later than this one; or to
    # the row's next request.
    slot = jnp.arange(1, survival.shape[1] + 1)
    room, later = slot < remaining[:, None], slot + 1 < remaining[:, None]
    now = room * trust * survival ** _hazard_ratio(history)
    gain, usual_gain = (
        jnp.maximum(pace * (rows + _accepted(x, weight)[num_drafts]) - rows, 0.0)
        for x in (now, (later | flex_costs.refilled) * usual)
    )  # [variants]

    plain_rate = rows / costs[0]
    drafting_rate = jnp.max((rows + usual_gain[1:]) / costs[1:])
    seen = jnp.mean(history.blocks, where=active)
    power = _LOOKING_POWER * seen / (seen + _FEW_BLOCKS)
    looking = _LOOKING * jnp.minimum(drafting_rate / plain_rate, 1.0) ** power
    plain_rate /= 1.0 + looking
    rate = jnp.maximum(plain_rate, drafting_rate)
    worth = jnp.where(drafting_rate > plain_rate, rate * jnp.min(costs[1:]) - rows, 0.0)
    drafts = jnp.arange(len(variants)) > 0
    score = gain - rate * costs + worth * drafts
    patience = jnp.clip((jnp.min(costs[1:]) / costs[0] - 1.0) / looking, *_PATIENCE)
    due = (history.idle >= patience) & (remaining > history.idle)
    most_due = 2 * jnp.sum(active & due) > jnp.sum(active)
    return jnp.argmax(jnp.where(most_due & ~drafts, -jnp.inf, score))


def _hazard_ratio(history: DraftHistory) -> jax.Array:
    """Rejections for each that was foretold, of the whole batch; scalar."""
    rejected, foretold = jnp.sum(history.rejected), jnp.sum(history.foretold)
    return (_PRIOR + rejected) / (_PRIOR + foretold)


def _trust(history: DraftHistory) -> jax.Array:
    """Accepted drafts for each that was promised, of the whole batch, at most 1; scalar."""
    accepted, promised = jnp.sum(history.accepted), jnp.sum(history.promised)
    return jnp.minimum((_PRIOR + accepted) / (_PRIOR + promised), 1.0)


def _wait_for_last(usual: jax.Array, remaining: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What counts where all rows wait for the last one.

    Args:
        usual: [B, n - 1] survival of a usual block.
        remaining: [B] tokens that each row may still emit.

    Returns:
        [B] what a token is worth in each row; and how fast the last of the rows is for their
        mean, where they draft: chance lets some of them fall behind. Without drafts all go alike.
    """
    mean = 1.0 + jnp.sum(usual, axis=1)  # Tokens of a step.
    second = jnp.sum((2.0 * jnp.arange(usual.shape[1]) + 1.0) * usual, axis=1)
    variance = jnp.maximum(second - (mean - 1.0) ** 2, 0.0)
    left = remaining / mean  # Steps.
    weight = (left / jnp.maximum(jnp.max(left), 1.0)) ** _SLOWNESS_POWER
    # Standard deviations by which the last of so many rows is late.
    lateness = jnp.sqrt(2.0 * jnp.log(jnp.maximum(jnp.sum(weight), 1.0)))
    last = jnp.max(left + lateness * jnp.sqrt(left * variance) / mean)
    return weight, jnp.max(left) / jnp.maximum(last, 1e-9)


def _accepted(survival: jax.Array, weight: jax.Array) -> jax.Array:
    """Drafts that all rows may accept of the first 0, 1, ... n - 1: [B, n - 1], [B] -> [n]."""
    by_slot = jnp.sum(weight[:, None] * survival, axis=0)
    return jnp.pad(jnp.cumsum(by_slot), (1, 0))
