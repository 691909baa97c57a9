"""Everything that changes while a batch is decoded: one pytree, donated from call to call."""

from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.flex import Record, empty_record
from flexdraft_jax.decoding.sampling import RowSampling
from flexdraft_jax.models.cache import Cache
from flexdraft_jax.parallel.axes import array_field, logical_axes
from flexdraft_jax.parallel.mesh import constrain

_Tree = TypeVar("_Tree")

# Values of `DecodeState.finish_reason`. A LOADING row has not read all of its prompt; an ERROR row
# has no next token, as the target's logits are NaN.
RUNNING, STOP, LENGTH, LOADING, ERROR = 0, 1, 2, 3, 4

# Axes as long as the cache: a row emits no more tokens, and takes no more steps, than fit into it.
_CACHE_LONG = ("slots", "output")


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
    hidden: jax.Array = array_field("batch", "block", "width")


@flax.struct.dataclass
class DecodeState:
    """A batch in the middle of decoding. Rows know nothing of each other.

    Attributes:
        cache: keys and values of committed tokens.
        block: the candidates of the next step.
        length: [B] int32, tokens of the row in the cache.
        tokens: [B, S] int32, emitted tokens.
        num_emitted: [B] int32, how many of them there are.
        budget: [B] int32, how many there may be.
        stop_token_ids: [B, M] int32, tokens that end the row; -1 is none.
        confidence_threshold: [B] float32, for the choice of v; 0 verifies every draft.
        sampling: how each row's tokens are drawn.
        record: what each row's drafts have been worth.
        finish_reason: [B] int32, one of the values above. Only RUNNING rows are decoded.
        num_steps: [B] int32, steps the row took part in.
        acceptance_lengths: [B, S] int32, a + 1 of each of them.
        verify_lengths: [B, S] int32, v of each of them.
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
    cache: Cache,
    *,
    block_size: int,
    budget: jax.Array,
    stop_token_ids: jax.Array,
    confidence_threshold: jax.Array,
    sampling: RowSampling,
) -> DecodeState:
    """A batch that has read nothing. A row with budget 0 is finished from the start.

    Args:
        config: the target's.
        cache: of B rows; what it holds counts for nothing.
        block_size: n; 1 where nothing is drafted.
        budget: [B] tokens to emit at most.
        stop_token_ids: [B, M], padded with -1.
        confidence_threshold: [B].
        sampling: of the B rows.
    """
    batch = budget.shape[0]

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((batch, *shape), jnp.int32)

    return DecodeState(
        cache=cache,
        length=zeros(),
        block=CandidateBlock(
            tokens=zeros(block_size),
            verify_length=zeros(),
            survival=jnp.zeros((batch, block_size - 1)),
            hidden=jnp.zeros((batch, block_size, config.hidden_size), cache.keys[0].dtype),
        ),
        tokens=zeros(cache.num_slots),
        num_emitted=zeros(),
        budget=budget,
        stop_token_ids=stop_token_ids,
        confidence_threshold=confidence_threshold,
        sampling=sampling,
        record=empty_record(batch, block_size),
        finish_reason=jnp.where(budget > 0, LOADING, LENGTH).astype(jnp.int32),
        num_steps=zeros(),
        acceptance_lengths=zeros(cache.num_slots),
        verify_lengths=zeros(cache.num_slots),
    )


def place_rows(state: DecodeState, mesh: Mesh | None, config: TargetConfig) -> DecodeState:
    """Within a compiled program: the state where the table of mesh axes says, in and out alike."""
    return constrain(state, mesh, logical_axes(state), config)


def resize(state: DecodeState, num_slots: int) -> DecodeState:
    """The same rows with more slots, or with fewer: then no row may hold more tokens than that.

    Each old array is freed when its successor is there, so that two caches never are.
    """

    def fit(old: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        shape = _resized(old.shape, axes, num_slots)
        if shape == old.shape:
            return old
        # Negative padding takes away.
        padding = [(0, after - before, 0) for before, after in zip(old.shape, shape, strict=True)]
        new = jax.lax.pad(old, jnp.zeros((), old.dtype), padding)
        if isinstance(old.sharding, NamedSharding):
            new = jax.device_put(new, old.sharding)
        old.delete()
        return new

    return jax.tree.map(fit, state, logical_axes(state))


def resized_shapes(state: DecodeState, num_slots: int) -> DecodeState:
    """What `resize` would give, with a `jax.ShapeDtypeStruct` for every array."""

    def shape(old: jax.Array, axes: tuple[str, ...]) -> Any:
        # An array that was never laid anywhere is compiled for as one that may lie anywhere.
        place = old.sharding if isinstance(old.sharding, NamedSharding) else None
        return jax.ShapeDtypeStruct(_resized(old.shape, axes, num_slots), old.dtype, sharding=place)

    return jax.tree.map(shape, state, logical_axes(state))


def take_rows(state: DecodeState, rows: jax.Array) -> DecodeState:
    """A state of the rows [R] alone; B stands for no row, and gives some row."""
    return jax.tree.map(lambda array: array.at[rows].get(mode="clip"), state)


def put_rows(state: DecodeState, rows: jax.Array, part: DecodeState) -> DecodeState:
    """The state with the rows [R] in their places; those at B are dropped."""
    return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), state, part)


def put_columns(old: jax.Array, columns: jax.Array, new: jax.Array) -> jax.Array:
    """Writes [B, n] into [B, S], each row at its own columns [B, n]; those at S are dropped."""

    def put(old: jax.Array, columns: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[columns].set(new, mode="drop", wrap_negative_indices=False)

    return jax.vmap(put)(old, columns, new)


def select_rows(rows: jax.Array, chosen: _Tree, others: _Tree) -> _Tree:
    """Rows of `chosen` where `rows` [B] is true, and of `others` elsewhere."""

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(select, chosen, others)


def _resized(shape: tuple[int, ...], axes: tuple[str, ...], num_slots: int) -> tuple[int, ...]:
    return tuple(
        num_slots if axis in _CACHE_LONG else size for size, axis in zip(shape, axes, strict=True)
    )
