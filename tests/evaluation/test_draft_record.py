"""Drafts held against the text that came of them."""

from types import SimpleNamespace

import jax.numpy as jnp

from flexdraft_jax.decoding.state import LENGTH, RUNNING
from flexdraft_jax.evaluation.draft_record import watch_drafts


class Scripted:
    """A decoding of two rows with n = 4 that goes through states written down here."""

    program = SimpleNamespace(block_size=4)

    def __init__(self) -> None:
        # Bonus and drafts, steps and tokens so far, whether the row still runs.
        steps = [
            ([[1, 2, 9, 4], [5, 6, 7, 8]], [0, 0], [1, 1], [RUNNING, RUNNING]),
            ([[3, 4, 9, 9], [5, 6, 7, 8]], [1, 1], [3, 3], [RUNNING, LENGTH]),
            ([[3, 4, 9, 9], [5, 6, 7, 8]], [2, 1], [5, 3], [LENGTH, LENGTH]),
        ]
        self.states = [
            SimpleNamespace(
                block=SimpleNamespace(tokens=jnp.array(tokens)),
                num_steps=jnp.array(done),
                num_emitted=jnp.array(emitted),
                finish_reason=jnp.array(reasons),
            )
            for tokens, done, emitted, reasons in steps
        ]

    @property
    def state(self):
        return self.states[0]

    def advance(self, max_steps: int) -> None:
        assert max_steps == 1
        del self.states[0]

    def output(self):
        return SimpleNamespace(
            tokens=[[1, 2, 3, 4, 5], [5, 6, 7]],
            acceptance_lengths=[[2, 2], [4]],
            verify_lengths=[[3, 1], [3]],
        )


def test_drafts_are_judged_by_their_place_in_the_text() -> None:
    record = watch_drafts(Scripted())
    # Of row 0: 2 is right, 9 is not, 4 is, though behind a wrong one; then 4 is right, and the
    # drafts behind it were not verified. Of row 1: 6 and 7 are right; the text ends before 8.
    assert record.drafted.tolist() == [3, 2, 1]
    assert record.right.tolist() == [3, 1, 1]
    assert record.accuracy == (1.0, 0.5, 1.0)
    assert record.verified.tolist() == [3, 2, 2]
    assert record.acceptance == (1.0, 0.5, 0.5)
    assert (record + record).accuracy == record.accuracy
    assert (record + record).verified.tolist() == [6, 4, 4]


def test_without_verified_drafts_there_is_no_rate() -> None:
    decoding = Scripted()
    del decoding.states[:2]
    decoding.output = lambda: SimpleNamespace(
        tokens=[[1], [5]], acceptance_lengths=[[], []], verify_lengths=[[], []]
    )
    record = watch_drafts(decoding)
    assert record.acceptance == record.accuracy == (None, None, None)
