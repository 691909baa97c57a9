"""Answers and their stats on disk: whole lines, in the order of the input, wherever a run ends."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexdraft_jax.data.conversations import keep_whole_lines, read_lines, whole_lines
from flexdraft_jax.evaluation.file_stats import FileSummary, stats_of_record

Record = dict[str, Any]

# What reading something else as a record may raise.
_NOT_A_RECORD = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _check_written(
    written: Path, path: str | os.PathLike[str], read: Callable[[Record], object]
) -> None:
    """Checks that each line of a file is about the same line of the input, as it was written.

    Args:
        written: the file; it need not be there.
        path: of the input.
        read: what a record must be fit for.

    Raises:
        ValueError: one is not; what else is in the file must not be overwritten.
    """
    numbers = (number for number, _ in read_lines(path))
    with contextlib.suppress(FileNotFoundError), written.open("rb") as file:
        for place, record in enumerate(file, 1):
            number = next(numbers, None)
            if number is None:
                raise ValueError(
                    f"{written}: has {place + sum(1 for _ in file)} lines: must be at most the "
                    f"{place - 1} of the input; restore the file, or move it away"
                )
            begin = b'{"line": %d,' % number
            if record[: len(begin)] != begin[: len(record)]:  # The last one may be torn.
                raise ValueError(
                    f"{written}: its line {place} is not what was written there; "
                    "restore the file, or move it away"
                )
            try:
                if record.endswith(b"\n"):
                    read(json.loads(record))
            except _NOT_A_RECORD as error:
                raise ValueError(
                    f"{written}: its line {place} is damaged ({type(error).__name__}: {error}); "
                    "restore the file, or cut it off before this line: a run goes on from there"
                ) from error


class OrderedFiles:
    """Answers and their stats, a line each at a time, in order; open behind the last answer.

    Attributes:
        num_lines: in each of them.
    """

    def __init__(self, path: str | os.PathLike[str], output: Path, stats: Path) -> None:
        """Cuts off what an interruption left behind whole lines; no answer is given up.

        Args:
            path: of the input.
            output: for answers.
            stats: of them. Where some are missing, what the answers say is taken.

        Raises:
            ValueError: a file holds something else, or is damaged.
        """
        _check_written(output, path, lambda record: FileSummary().add(stats_of_record(record)))
        _check_written(stats, path, FileSummary().add)
        for written in (output, stats):
            keep_whole_lines(written)
        self.num_lines = sum(1 for _ in whole_lines(output))
        keep_whole_lines(stats, self.num_lines)
        num_stats = sum(1 for _ in whole_lines(stats))
        # Stats first: what a kill leaves of them is enough for the answers.
        self._files = [stats.open("ab"), output.open("ab")]
        for record in itertools.islice(whole_lines(output), num_stats, None):
            self._files[0].write(_as_line(stats_of_record(json.loads(record))))
        self._waiting: dict[int, tuple[bytes, bytes]] = {}

    def __enter__(self) -> "OrderedFiles":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()

    def put(self, place: int, record: Record, stats: Record) -> None:
        """Takes an answer, line number `place` (from 0); writes all lines whose turn it is."""
        self._waiting[place] = _as_line(stats), _as_line(record)
        ready = []
        while self.num_lines in self._waiting:
            ready.append(self._waiting.pop(self.num_lines))
            self.num_lines += 1
        for file, lines in zip(self._files, zip(*ready, strict=True), strict=False):
            file.writelines(lines)
            file.flush()


def _as_line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
