"""From logits to a token: the largest, or a draw from the warped distribution.

The randomness of a draw is a function of the row's seed and id, the position in the row and the
purpose of the draw. It depends on nothing else: not on the batch, the schedule, the verify length
or the devices.
"""

import enum
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from flexdraft_jax.parallel.axes import array_field

# How random rows are decoded without loss; `Verdict`s of both are in `acceptance.py`.
SAMPLING_RULES = ("coupled", "rejection")


class Purpose(enum.IntEnum):
    """What a random number is for; different purposes give independent numbers."""

    TOKEN = 0  # The target's choice, and of the coupled rule the draft's as well.
    DRAFT = 1  # The draft's choice, of the rejection rule.
    ACCEPT = 2  # Whether a draft is accepted, of the rejection rule.


@flax.struct.dataclass
class RowSampling:
    """How each row's tokens are drawn. Filters apply in this order, as in Hugging Face.

    Attributes:
        temperature: [B] float32; 0 takes the largest logit, whatever the rest says.
        top_k: [B] int32, most likely tokens that may be drawn; 0 is all of them.
        top_p: [B] float32, the fewest most likely tokens that have this probability together.
        min_p: [B] float32, tokens with at least this share of the largest probability.
        seed: [B] uint32.
        row_id: [B] uint32; rows of one seed and different ids are independent.
    """

    temperature: jax.Array = array_field("batch")
    top_k: jax.Array = array_field("batch")
    top_p: jax.Array = array_field("batch")
    min_p: jax.Array = array_field("batch")
    seed: jax.Array = array_field("batch")
    row_id: jax.Array = array_field("batch")


def greedy_token(logits: jax.Array) -> jax.Array:
    """The first largest entry: [..., V] -> [...] int32; V, which is no token, where one is NaN.

    Two plain reductions vectorise where `argmax`, a reduction over pairs, does not: on a CPU they
    take a ninth of its time at 8 x 2048.
    """
    size = logits.shape[-1]
    top = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == top, jnp.arange(size), size), axis=-1).astype(jnp.int32)


def draw_token(
    logits: jax.Array, sampling: RowSampling, positions: jax.Array, purpose: Purpose
) -> jax.Array:
    """A token of each warped distribution: the largest sum of logit and Gumbel noise.

    Args:
        logits: [B, C, V], as the model gives them.
        sampling: of the B rows.
        positions: [B, C], where in its row each token is to stand.
        purpose: of the draw.

    Returns:
        [B, C] int32; V, which is no token, where a logit is NaN.
    """
    drawn = greedy_token(warp(logits, sampling) + _gumbel(logits, sampling, positions, purpose))
    return jnp.where(sampling.temperature[:, None] > 0, drawn, greedy_token(logits))


def draw_from(
    probabilities: jax.Array, sampling: RowSampling, positions: jax.Array, purpose: Purpose
) -> jax.Array:
    """A token of each distribution [B, C, V], which need not be normalised; else `draw_token`."""
    logits = jnp.log(probabilities)
    return greedy_token(logits + _gumbel(logits, sampling, positions, purpose))


def uniform(sampling: RowSampling, positions: jax.Array, purpose: Purpose) -> jax.Array:
    """Random numbers in [0, 1), one for each of the positions [B, C]."""
    return _vmapped(jax.random.uniform, sampling, positions, purpose)


def probabilities(logits: jax.Array, sampling: RowSampling) -> jax.Array:
    """The warped distributions themselves, [B, C, V]; at temperature 0 all on the largest logit.

    NaN for every token where a logit is NaN.
    """
    largest = jax.nn.one_hot(greedy_token(logits), logits.shape[-1])
    warped = jax.nn.softmax(warp(logits, sampling), axis=-1)
    random = _per_row(sampling.temperature, logits) > 0
    return jnp.where(random | jnp.isnan(warped), warped, largest)


def warp(logits: jax.Array, sampling: RowSampling) -> jax.Array:
    """Logits of the warped distribution, -inf where a token may not be drawn.

    Tokens that are as likely as the last one that is kept are kept as well.

    Args:
        logits: [B, C, V].
        sampling: of the B rows; a row with temperature 0 is treated as one with 1.

    Returns:
        [B, C, V], at most 0; NaN for every token where a logit is NaN.
    """
    temperature = _per_row(sampling.temperature, logits)
    # The largest becomes 0, so that no temperature, however low, makes logits overflow.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    # Filters cost several passes over the vocabulary, so a batch that wants none pays for none.
    logits = jax.lax.cond(jnp.any(sampling.top_k > 0), _keep_top_k, _as_is, logits, sampling.top_k)
    logits = jax.lax.cond(jnp.any(sampling.top_p < 1), _keep_top_p, _as_is, logits, sampling.top_p)
    return _drop_below(logits, jnp.log(_per_row(sampling.min_p, logits)))


def _keep_top_k(logits: jax.Array, top_k: jax.Array) -> jax.Array:
    size = logits.shape[-1]
    count = _per_row(jnp.where((top_k > 0) & (top_k < size), top_k, size), logits)
    return _drop_below(
        logits,
        _largest_threshold(logits, lambda kept: jnp.sum(kept, axis=-1, keepdims=True) >= count),
    )


def _keep_top_p(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    likely = jax.nn.softmax(logits, axis=-1)
    wanted = _per_row(top_p, logits)
    threshold = _largest_threshold(
        logits,
        lambda kept: jnp.sum(jnp.where(kept, likely, 0.0), axis=-1, keepdims=True) >= wanted,
    )
    # Rounding may keep the sum of all probabilities under 1.
    return _drop_below(logits, jnp.where(wanted < 1, threshold, -jnp.inf))


def _as_is(logits: jax.Array, _: jax.Array) -> jax.Array:
    return logits


def _drop_below(logits: jax.Array, least: jax.Array) -> jax.Array:
    # A NaN is below nothing, so it stays and can be reported.
    return jnp.where(logits < least, -jnp.inf, logits)


def _largest_threshold(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest t for which the tokens with a logit of at least t are enough, [..., 1].

    Bisects the bits of t: 32 passes over the vocabulary, where sorting takes far longer on an
    accelerator. Exact, as it ends between two neighbouring floats.

    Args:
        logits: [..., V] float32.
        enough: kept [..., V] bool -> [..., 1] bool; falling in t, and true for -inf.
    """
    ordered = _ordered_bits(logits)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # `low` is enough, `high` is not.
        middle = (low & high) + ((low ^ high) >> 1)  # Their mean, without overflow.
        good = enough(ordered >= middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    shape = (*logits.shape[:-1], 1)
    limits = jnp.iinfo(jnp.int32)
    bounds = jnp.full(shape, limits.min, jnp.int32), jnp.full(shape, limits.max, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    kept = ordered >= low
    return jnp.min(jnp.where(kept, logits, jnp.inf), axis=-1, keepdims=True)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """float32 -> int32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _gumbel(
    logits: jax.Array, sampling: RowSampling, positions: jax.Array, purpose: Purpose
) -> jax.Array:
    """Noise for every token, [B, C, V]."""

    def noise(key: jax.Array) -> jax.Array:
        # The usual 23 random bits would give the best of a large vocabulary many equal noises.
        return jax.random.gumbel(key, (logits.shape[-1],), mode="high")

    return _vmapped(noise, sampling, positions, purpose)


def _vmapped(
    draw: Callable[[jax.Array], jax.Array],
    sampling: RowSampling,
    positions: jax.Array,
    purpose: Purpose,
) -> jax.Array:
    """`draw(key)` for each of the positions [B, C]."""

    def at(seed: jax.Array, row_id: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.key(seed, impl="threefry2x32")
        for number in (row_id, position, int(purpose)):
            key = jax.random.fold_in(key, number)
        return draw(key)

    over_positions = jax.vmap(at, in_axes=(None, None, 0))
    return jax.vmap(over_positions)(sampling.seed, sampling.row_id, positions)


def _per_row(values: jax.Array, logits: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ...] with as many dimensions as `logits`."""
    return values.reshape(-1, *[1] * (logits.ndim - 1))
