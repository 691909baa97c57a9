"""What becomes of every draft, by its place in the block."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flexdraft_jax.decoding.batch import Decoding
from flexdraft_jax.decoding.state import RUNNING
from flexdraft_jax.parallel.processes import to_host

# Per slot 1..n-1; None where no draft was judged.
Rates = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class DraftRecord:
    """Counts by slot, one entry for each of 1..n-1. Records of the same n can be added.

    Attributes:
        verified: steps that verified the draft.
        accepted: those that accepted it, and so all before it.
        drafted: verified drafts whose place the text reaches.
        right: those that are the text's token, whatever the drafts before them were.
    """

    verified: np.ndarray
    accepted: np.ndarray
    drafted: np.ndarray
    right: np.ndarray

    def __add__(self, other: "DraftRecord") -> "DraftRecord":
        return DraftRecord(
            self.verified + other.verified,
            self.accepted + other.accepted,
            self.drafted + other.drafted,
            self.right + other.right,
        )

    @property
    def acceptance(self) -> Rates:
        """By position: the share of steps that got so far, of those that verified so many."""
        return _rates(self.accepted, self.verified)

    @property
    def accuracy(self) -> Rates:
        """By slot: the share of drafts that are right, each judged alone."""
        return _rates(self.right, self.drafted)


def watch_drafts(decoding: Decoding) -> DraftRecord:
    """Decodes a batch step by step and holds every verified draft against the text that came of it.

    Flex chooses anew behind each of these calls, so its steps need not be those of one long call.

    Args:
        decoding: that has read its prompts; it is used up.
    """
    blocks = []
    while True:
        state = decoding.state
        seen = (state.block.tokens, state.num_steps, state.num_emitted)
        # Copies, as the next call is given the arrays themselves.
        tokens, num_steps, num_emitted = map(np.array, to_host(seen))
        running = np.array(to_host(state.finish_reason)) == RUNNING
        if not running.any():
            break
        blocks.append((tokens, running, num_steps, num_emitted))
        decoding.advance(1)
    out = decoding.output()
    num_drafts = decoding.program.block_size - 1
    drafted, right = np.zeros((2, num_drafts), int)
    for tokens, running, num_steps, num_emitted in blocks:
        for row in np.flatnonzero(running):
            # As many as the step did verify, which may be fewer than the block asked for.
            verified = out.verify_lengths[row][num_steps[row]]
            # The bonus, in slot 0, is the last token emitted.
            following = out.tokens[row][num_emitted[row] :][:verified]
            drafted[: len(following)] += 1
            right[: len(following)] += tokens[row, 1 : len(following) + 1] == following
    of_each = _accepted(out.acceptance_lengths, out.verify_lengths, num_drafts)
    return DraftRecord(*of_each, drafted, right)


def _accepted(
    acceptance_lengths: Sequence[Sequence[int]],
    verify_lengths: Sequence[Sequence[int]],
    num_drafts: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How many steps verified, and how many accepted, each of the drafts 1..n-1."""
    position = np.arange(1, num_drafts + 1)
    lengths = np.concatenate([np.array(row, int) for row in acceptance_lengths])[:, None]
    verified = np.concatenate([np.array(row, int) for row in verify_lengths])[:, None]
    return (verified >= position).sum(0), (lengths - 1 >= position).sum(0)


def _rates(numerators: np.ndarray, denominators: np.ndarray) -> Rates:
    pairs = zip(numerators.tolist(), denominators.tolist(), strict=True)
    return tuple(a / b if b else None for a, b in pairs)
