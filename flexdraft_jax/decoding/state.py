"""Everything that changes while a batch is decoded: one pytree, donated from call to call."""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.flex import Record, empty_record
from flexdraft_jax.decoding.sampling import RowSampling
from flexdraft_jax.models.cache import Cache, init_cache
from flexdraft_jax.parallel.axes import array_field

# Values of `DecodeState.finish_reason`.
RUNNING, STOP, LENGTH = 0, 1, 2


@flax.struct.dataclass
class CandidateBlock:
    """What the next step verifies. n is 1 where nothing is drafted.

    Attributes:
        tokens: [B, n] int32, for positions length..length+n-1; slot 0 is the bonus, already
            emitted, the others are drafts.
        verify_length: [B] int32 v, how many of the drafts are verified; 0 verifies none.
        survival: [B, n - 1] float32, probability by confidence that a draft and all before it are
            accepted; 0 where none is verified.
        hidden: [B, n, E] final-normed hidden states that the drafts were read from: the draft's
            distribution in a form that stays small at any vocabulary. Slot 0's mean nothing.
    """

    tokens: jax.Array = array_field("batch", "block")
    verify_length: jax.Array = array_field("batch")
    survival: jax.Array = array_field("batch", "block")
    hidden: jax.Array = array_field("batch", "block", "embed")


@flax.struct.dataclass
class DecodeState:
    """A batch in the middle of decoding. Rows know nothing of each other.

    Attributes:
        cache: keys and values of committed tokens.
        block: the candidates of the next step.
        length: [B] int32, tokens of the row in the cache.
        tokens: [B, O] int32, emitted tokens.
        num_emitted: [B] int32, how many of them there are.
        budget: [B] int32, how many there may be.
        stop_token_ids: [B, M] int32, tokens that end the row; -1 is none.
        confidence_threshold: [B] float32, for the choice of v; 0 verifies every draft.
        sampling: how each row's tokens are drawn.
        record: what each row's drafts have been worth.
        finish_reason: [B] int32, RUNNING, STOP or LENGTH. A row that is not running is frozen.
        num_steps: [B] int32, steps the row took part in.
        acceptance_lengths: [B, O] int32, a + 1 of each of them.
        verify_lengths: [B, O] int32, v of each of them.
    """

    cache: Cache
    block: CandidateBlock
    sampling: RowSampling
    record: Record
    length: jax.Array = array_field("batch")
    tokens: jax.Array = array_field("batch", "output")
    num_emitted: jax.Array = array_field("batch")
    budget: jax.Array = array_field("batch")
    stop_token_ids: jax.Array = array_field("batch", "stops")
    confidence_threshold: jax.Array = array_field("batch")
    finish_reason: jax.Array = array_field("batch")
    num_steps: jax.Array = array_field("batch")
    acceptance_lengths: jax.Array = array_field("batch", "output")
    verify_lengths: jax.Array = array_field("batch", "output")

    @property
    def active(self) -> jax.Array:
        """[B] bool: rows that still decode."""
        return self.finish_reason == RUNNING


def init_state(
    config: TargetConfig,
    *,
    block_size: int,
    num_slots: int,
    output_size: int,
    budget: jax.Array,
    stop_token_ids: jax.Array,
    confidence_threshold: jax.Array,
    sampling: RowSampling,
    dtype: DTypeLike,
) -> DecodeState:
    """A batch before prefill. A row with budget 0 is finished from the start.

    Args:
        config: the target's.
        block_size: n; 1 where nothing is drafted.
        num_slots: S.
        output_size: O, at least the largest budget.
        budget: [B] tokens to emit at most.
        stop_token_ids: [B, M], padded with -1.
        confidence_threshold: [B].
        sampling: of the B rows.
        dtype: of the cache and hidden states.
    """
    batch = budget.shape[0]

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((batch, *shape), jnp.int32)

    return DecodeState(
        cache=init_cache(config, batch, num_slots, dtype),
        length=zeros(),
        block=CandidateBlock(
            tokens=zeros(block_size),
            verify_length=zeros(),
            survival=jnp.zeros((batch, block_size - 1)),
            hidden=jnp.zeros((batch, block_size, config.hidden_size), dtype),
        ),
        tokens=zeros(output_size),
        num_emitted=zeros(),
        budget=budget,
        stop_token_ids=stop_token_ids,
        confidence_threshold=confidence_threshold,
        sampling=sampling,
        record=empty_record(batch, block_size),
        finish_reason=jnp.where(budget > 0, RUNNING, LENGTH).astype(jnp.int32),
        num_steps=zeros(),
        acceptance_lengths=zeros(output_size),
        verify_lengths=zeros(output_size),
    )
