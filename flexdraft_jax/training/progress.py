"""What a person sees while a training runs: one line, renewed in place on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax
import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.status import Status

Metric = float | list[float]

_PLAIN_SECONDS = 20.0  # A log file gets a line this often; a terminal is renewed every step.


class Progress:
    """A renewing line with step, metrics, speed and time left.

    On a terminal the line is renewed in place; in a file (a redirected run) it is printed every
    twenty seconds.
    """

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None):
        """Starts the clock.

        Args:
            total_steps: the step at which the run is complete.
            first_step: the step this process starts from; later than 0 in a resumed run.
            console: where to write; standard output by default.
        """
        self._console = console or Console(highlight=False)
        self._status: Status | None = None
        self._total = total_steps
        self._first = first_step
        self._start = time.monotonic()
        self._printed = 0.0
        self._tokens = 0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._status = self._console.status("compiling the training step")
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, step: int, tokens: int, metrics: Mapping[str, Metric]) -> None:
        """Shows the metrics of `step`, which processed `tokens` tokens."""
        self._tokens += tokens
        now = time.monotonic()
        elapsed = now - self._start
        left = elapsed / max(1, step - self._first) * (self._total - step)
        numbers = "  ".join(f"{name} {format_metric(value)}" for name, value in metrics.items())
        line = (
            f"step {step}/{self._total}  {numbers}  "
            f"{self._tokens / elapsed:,.0f} tokens/s  {_clock(left)} left"
        )
        if self._status is not None:
            self._status.update(line)
        elif now - self._printed > _PLAIN_SECONDS or step == self._total:
            self._printed = now
            print(line, file=self._console.file, flush=True)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if self._status is not None:
            self._console.print(text)
        else:
            print(text, file=self._console.file, flush=True)


@contextmanager
def track(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of some work is done; gives a function to call with what was just finished.

    Of several processes the first alone shows its share.
    """
    if jax.process_index() > 0:
        yield lambda finished: None
        return
    # Bound now: the work may redirect standard output to silence others.
    console = Console(highlight=False, file=sys.stdout)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with rich.progress.Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda finished: bar.advance(task, finished)
        return
    done = 0

    def advance(finished: int) -> None:
        nonlocal done
        done += finished
        print(f"{what}: {done}/{total}", file=console.file, flush=True)

    yield advance


def format_metric(value: Metric) -> str:
    """A few digits of a number, or of each number of a list (slots, say)."""
    if isinstance(value, list):
        return " ".join(f"{number:.2f}" for number in value)
    return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.3f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
