"""The key/value cache: one pair of arrays a layer, one length a row.

A pass only reads the cache; the keys and values it makes come back as `Fresh` and are written once,
by `commit`, when the step is over. Separate arrays per layer and a scatter that drops what lies out
of bounds let XLA update every array in place inside `lax.while_loop`.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.parallel.axes import array_field

_CACHE_AXES = ("batch", "kv_heads", "slots", "head_dim")


class KeysValues(NamedTuple):
    """Keys (after RoPE) and values of one layer, each [B, K, tokens, H]."""

    keys: jax.Array
    values: jax.Array


@flax.struct.dataclass
class Cache:
    """Keys and values of all committed tokens; slot s of a row holds its token at position s.

    Attributes:
        keys: L arrays [B, K, S, H], after RoPE.
        values: L arrays [B, K, S, H].
    """

    keys: tuple[jax.Array, ...] = array_field(*_CACHE_AXES)
    values: tuple[jax.Array, ...] = array_field(*_CACHE_AXES)

    @property
    def num_slots(self) -> int:
        """S."""
        return self.keys[0].shape[2]

    def layer(self, index: int) -> KeysValues:
        """What layer `index` has cached."""
        return KeysValues(self.keys[index], self.values[index])


def init_cache(config: TargetConfig, batch_size: int, num_slots: int, dtype: DTypeLike) -> Cache:
    """An empty cache of `num_slots` slots a row."""
    shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
    # Distinct buffers: a donated pytree may not name one buffer twice.
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
    )


def commit(
    cache: Cache, fresh: tuple[KeysValues, ...], length: jax.Array, active: jax.Array
) -> Cache:
    """Writes the fresh tokens of every layer behind each row's length.

    All of them are written, rejected candidates too: a slot at or beyond a row's length is never
    read, and the next step overwrites it.

    Args:
        cache: of L layers.
        fresh: L pairs [B, K, T, H].
        length: [B], the slot of the first fresh token.
        active: [B]; the cache of other rows stays as it is.
    """
    # An inactive row writes behind the last slot, and mode="drop" discards it.
    start = jnp.where(active, length, cache.num_slots)
    _, heads, num_fresh, _ = fresh[0].keys.shape
    slots = (start[:, None] + jnp.arange(num_fresh))[:, None]  # [B, 1, T]
    # Each head is told by itself: told once, TPUs would lay the heads of a slot side by side, and
    # copy the cache for all who want a head's slots so.
    slots = jnp.broadcast_to(slots, (len(start), heads, num_fresh))

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        # Row by row and head by head, so that on a mesh each device writes what it has.
        return jax.vmap(jax.vmap(_put))(old, slots, new.astype(old.dtype))

    return Cache(
        keys=tuple(write(old, new.keys) for old, new in zip(cache.keys, fresh, strict=True)),
        values=tuple(write(old, new.values) for old, new in zip(cache.values, fresh, strict=True)),
    )


def _put(old: jax.Array, slots: jax.Array, new: jax.Array) -> jax.Array:
    """One row and head: [S, H], [T], [T, H] -> [S, H]."""
    return old.at[slots].set(
        new,
        mode="drop",
        unique_indices=True,
        indices_are_sorted=True,
        wrap_negative_indices=False,
    )
