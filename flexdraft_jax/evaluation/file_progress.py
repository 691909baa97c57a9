"""How far a file of requests is."""

import math
import time

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from flexdraft_jax.decoding.rounds import Answer

_PLAIN_SECONDS = 20.0  # A log file gets a line this often; a terminal is renewed all the time.


class FileProgress:
    """Lines done, tokens per second, tau and time left: a bar, or lines in a log file."""

    def __init__(self, console: Console, num_done: int, num_lines: int) -> None:
        """Nothing is answered yet.

        Args:
            console: to write on.
            num_done: lines that earlier runs have answered.
            num_lines: of the file.
        """
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = rich.progress.Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        label = "waiting for the first answer" if num_done < num_lines else "all lines are answered"
        self._task = self._bar.add_task(label, total=num_lines, completed=num_done)
        self._console = console
        self._printed = time.monotonic()
        self._start = math.inf  # When the first answer got its row: before, programs are compiled.
        self._num_tokens = self._num_steps = self._num_emitted = 0

    def __enter__(self) -> "FileProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def finished(self, answer: Answer | None) -> None:
        """Counts a line; None is one with an error."""
        now = time.monotonic()
        if answer is not None:
            self._start = min(self._start, now - answer.seconds)
            self._num_tokens += len(answer.tokens)
            self._num_steps += len(answer.acceptance_lengths)
            self._num_emitted += sum(answer.acceptance_lengths)
        speed = self._num_tokens / max(now - self._start, 1e-9)  # Clocks tick in milliseconds.
        tau = self._num_emitted / max(1, self._num_steps)
        text = f"{speed:,.0f} tokens/s  tau {tau:.2f}"
        self._bar.update(self._task, advance=1, description=text)
        if not self._console.is_terminal and now - self._printed > _PLAIN_SECONDS:
            self._printed = now
            task = self._bar.tasks[0]
            if task.time_remaining is not None:
                text += f"  {task.time_remaining / 60:.0f} min left"
            self._console.print(f"{task.completed:,.0f} of {task.total:,.0f} lines  {text}")
