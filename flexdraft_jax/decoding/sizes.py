"""Array sizes that programs are compiled for: few of them, so that programs are few."""

import dataclasses
from collections.abc import Sequence

from flexdraft_jax.decoding.requests import Request

# Tokens of prompts, all rows together, that keep a device busy; more in one call take only memory.
_TOKENS_PER_CALL = 2048
# New tokens that the first cache has room for: more of them are worth another compilation.
_FIRST_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of one batch, in tokens.

    Attributes:
        prompt: P, of a row's prompt in one call; longer prompts take several.
        slots: S, of the cache to begin with; it grows when a row needs more.
        max_slots: S that is enough for every row.
    """

    prompt: int
    slots: int
    max_slots: int


def sizes_for(requests: Sequence[Request], block_size: int) -> Sizes:
    """The buckets to begin with for these requests, one per row."""
    return sizes_of(
        longest=max(len(r.prompt) for r in requests),
        whole=max(len(r.prompt) + r.max_new_tokens for r in requests),
        batch_size=len(requests),
        block_size=block_size,
    )


def sizes_of(*, longest: int, whole: int, batch_size: int, block_size: int) -> Sizes:
    """The buckets to begin with: room for every prompt and some new tokens.

    A row needs at most prompt + max_new_tokens + n - 2 slots in the end: its last step is the one
    that emits the last token, and may write n tokens behind the prompt and all new ones but two.

    Args:
        longest: tokens of the longest prompt.
        whole: tokens of the longest prompt and answer together.
        batch_size: B.
        block_size: n.
    """
    max_slots = slot_bucket(max(longest, whole - 2) + block_size)
    return Sizes(
        prompt=prompt_chunk(longest, batch_size),
        slots=slot_bucket(longest + _FIRST_TOKENS + block_size, max_slots),
        max_slots=max_slots,
    )


def prompt_chunk(longest: int, batch_size: int) -> int:
    """P: the fewer rows there are, the more tokens of each are read in one call.

    Args:
        longest: tokens of the longest prompt.
        batch_size: B.
    """
    share = _TOKENS_PER_CALL // batch_size
    return min(bucket(longest, smallest=8), max(64, min(512, share)))


def slot_bucket(size: int, largest: int | None = None) -> int:
    """The cache size for `size` tokens: 128, 256, 384, 512, 768, 1024, ... up to the largest.

    Fewer small sizes than `bucket` has: a cache grows through all of them, each is compiled for,
    and small ones save little.
    """
    slots = bucket(size, smallest=128 if size <= 128 else 256)
    return slots if largest is None else min(slots, largest)


def bucket(size: int, smallest: int = 32) -> int:
    """The array size for `size` entries: 32, 48, 64, 96, 128, 192, ...

    Programs are compiled per size, so sizes are few; attention pays for every slot, so no more
    than a third of them is padding.
    """
    power = smallest
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power
