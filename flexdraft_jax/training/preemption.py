"""Stopping on SIGTERM (a pod's host is taken away) and on the first Ctrl-C: save, then exit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TrainingStopped(RuntimeError):
    """A signal ended the run after a saved step; started again, it continues there.

    Attributes:
        exit_code: 128 + the signal's number, as a shell reports it: 143 for SIGTERM, 130 for
            Ctrl-C. It is not 0, so that what waits for a finished run does not go ahead.
    """

    def __init__(self, signal_number: int, step: int):
        """A run stopped by `signal_number` after `step`, which is saved."""
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}, which is saved; "
            "start again to continue"
        )
        self.exit_code = 128 + signal_number


@contextmanager
def stopping_exits() -> Iterator[None]:
    """Ends a script with the signal's own status where a signal stopped its training."""
    try:
        yield
    except TrainingStopped as stopped:
        print(stopped)
        raise SystemExit(stopped.exit_code) from None


class StopSignal:
    """While it is entered, SIGTERM and the first Ctrl-C are noted instead of obeyed.

    A second Ctrl-C interrupts at once, as usual.

    Attributes:
        number: of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        # Not print(): the signal may come in the middle of one.
        os.write(2, f"{signal.Signals(number).name}: saving after the next step\n".encode())
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
