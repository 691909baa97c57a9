"""A file of requests in, a file of answers out, in the same order; stopped anywhere, it goes on.

    OUTPUT                  one object a line: `line` and `id` of the request, and either `text`,
                            `token_ids` and `finish_reason`, or `error`
    OUTPUT.stats.jsonl      timing and acceptance of the same lines
    OUTPUT.settings.json    what the answers depend on; a second run must bring the same. Draft,
                            schedule, batch size and threshold may change: answers keep their law,
                            and all but those drawn by rejection their very tokens

Both files grow by whole lines and in the order of the input. So what is there says what is done:
a run that was killed goes on behind the last whole answer. While it runs, the output is locked.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from flexdraft_jax.checkpoints.paths import MAX_DEPTH, depth_of
from flexdraft_jax.data.conversations import (
    count_lines,
    keep_whole_lines,
    parse_object,
    read_lines,
    whole_lines,
)
from flexdraft_jax.data.fingerprints import (
    claim_output,
    file_digest,
    refuse_other_files,
    settings_path,
    target_fingerprint,
    tokenizer_fingerprint,
)
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.requests import Request, integer
from flexdraft_jax.decoding.rounds import Answer
from flexdraft_jax.decoding.rows import nan_message
from flexdraft_jax.evaluation.file_stats import (
    FileSummary,
    stats_of_record,
    stats_record,
    summarise,
)
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.measure import decode_text
from flexdraft_jax.evaluation.request_lines import (
    FIELDS,
    OWN_SETTINGS,
    LineSettings,
    read_request,
)
from flexdraft_jax.parallel.locks import locked

Record = dict[str, Any]

_MAX_ERROR_CHARACTERS = 300
_MAX_UNREAD = 100  # Names of fields without a meaning that are counted.
# What reading something else as a record may raise.
_NOT_A_RECORD = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
_PLAIN_SECONDS = 20.0  # A log file gets a line this often; a terminal is renewed all the time.


def decode_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    models: Models,
    engine: DecodeEngine,
    settings: LineSettings,
    console: Console,
) -> FileSummary:
    """Answers every line of a file that is not answered yet.

    What is held in memory is the requests being decoded, and answers that wait for an earlier one.

    Args:
        path: JSONL file; see :mod:`flexdraft_jax.evaluation.request_lines`.
        output: JSONL file to write, or to go on with.
        models: whose answers they are.
        engine: that decodes with them.
        settings: for what lines do not say.
        console: to show progress on.

    Returns:
        Counts of all lines, those of earlier runs too.

    Raises:
        ValueError: `path` is a pipe or a folder; a setting is wrong for every line; `output` was
            begun with other settings, is some other file or a damaged one, or is being written by
            another run.
        TypeError: a setting is of the wrong kind.
        FileNotFoundError: there is no file at `path`.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(
            f"input={os.fspath(path)!r}: must be a regular file, as it is read more than once; "
            "write to a file first what comes from elsewhere"
        )
    settings = _checked_settings(models, engine, settings)
    check_template(path, models, settings)
    output = Path(output)
    recorded = {
        "input": file_digest(path),
        "target": target_fingerprint(models.target),
        "dtype": str(models.target.dtype),
        "tokenizer": tokenizer_fingerprint(models.tokenizer),
        "sampling": engine.sampling,
        "max_length": engine.asked_length,  # What fits may be another at another batch size.
        **dataclasses.asdict(settings),
    }
    del recorded["confidence_threshold"]  # As with the draft, answers are as good with another.
    stats = stats_path(output)
    refuse_other_files(output, [stats])
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(output, f"output={str(output)!r}"))
        claim_output(output, recorded, [stats])
        files = stack.enter_context(_OrderedFiles(path, output, stats))
        lines = itertools.islice(enumerate(read_lines(path)), files.num_lines, None)
        with _Progress(console, files.num_lines, count_lines(path)) as progress:
            unread = _decode_lines(lines, models, engine, settings, files, progress)
    if unread:
        names = ", ".join(f"{name!a} ({count})" for name, count in unread.most_common(8))
        console.print(f"Fields of lines that mean nothing here: {names}", markup=False)
    return summarise(stats)


def files_of(output: Path) -> list[Path]:
    """All that is written for the answers."""
    return [output, stats_path(output), settings_path(output)]


def stats_path(output: Path) -> Path:
    """Where timing and acceptance of the answers lie."""
    return output.with_name(f"{output.name}.stats.jsonl")


def _checked_settings(models: Models, engine: DecodeEngine, settings: LineSettings) -> LineSettings:
    """The settings in their usual types.

    Raises:
        ValueError: they are wrong for every line that does not say otherwise.
        TypeError: the same.
    """
    budget = integer("max_new_tokens", settings.max_new_tokens)
    if budget >= engine.max_length:
        raise ValueError(
            f"max_new_tokens={budget}: must be under max_length={engine.max_length}, which prompt "
            "and answer share"
        )
    request = engine.check(read_request({"token_ids": [0]}, 0, models, settings))
    return dataclasses.replace(settings, **{name: getattr(request, name) for name in OWN_SETTINGS})


def check_template(path: str | os.PathLike[str], models: Models, settings: LineSettings) -> None:
    """Looks at the first line, as a missing template most likely fails every one.

    Args:
        path: JSONL file.
        models: whose tokenizer may have no chat template.
        settings: for what lines do not say.

    Raises:
        ValueError: the line needs a chat template, and the tokenizer has none.
    """
    if models.tokenizer.chat_template:
        return
    for number, content in read_lines(path):
        try:
            fields = parse_object(content)
        except ValueError:
            continue  # The line's own error.
        if "messages" in fields or ("prompt" in fields and not settings.raw):
            raise ValueError(
                f"line {number}: the tokenizer of {models.name} has no chat template, which "
                "messages need, and a prompt that is not raw (--raw)"
            )
        return


@dataclasses.dataclass
class _Line:
    """A line that is being answered.

    Attributes:
        place: among the lines that are not blank, from 0.
        number: of the line.
        label: its `id`, if it has one.
        num_prompt_tokens: of its request.
    """

    place: int
    number: int
    label: Record = dataclasses.field(default_factory=dict)
    num_prompt_tokens: int = 0


def _decode_lines(
    lines: Iterator[tuple[int, tuple[int, bytes]]],
    models: Models,
    engine: DecodeEngine,
    settings: LineSettings,
    files: "_OrderedFiles",
    progress: "_Progress",
) -> Counter[str]:
    """Answers lines, each with its place and number; counts fields that mean nothing."""
    taken: dict[int, _Line] = {}
    unread: Counter[str] = Counter()

    def fail(line: _Line, error: str) -> None:
        record = {"line": line.number, **line.label, "error": _shortened(error)}
        files.put(line.place, record, {"line": line.number, "finish_reason": "error"})
        progress.finished(None)

    def requests() -> Iterator[Request]:
        index = itertools.count()
        for place, (number, content) in lines:
            line = _Line(place, number)
            try:
                fields = parse_object(content)
                unread.update(
                    name
                    for name in fields.keys() - FIELDS
                    if name in unread or len(unread) < _MAX_UNREAD
                )
                if "id" in fields:
                    line.label["id"] = _checked_id(fields["id"])
                request = engine.check(read_request(fields, number, models, settings))
            except (TypeError, ValueError) as error:
                fail(line, str(error))
                continue
            line.num_prompt_tokens = len(request.prompt)
            taken[next(index)] = line
            yield request

    for answer in engine.run(requests()):
        line = taken.pop(answer.index)
        if answer.finish_reason == "error":
            fail(line, nan_message(answer.tokens))
            continue
        record = {
            "line": line.number,
            **line.label,
            "text": decode_text(models.tokenizer, answer.tokens),
            "token_ids": answer.tokens,
            "finish_reason": answer.finish_reason,
        }
        files.put(line.place, record, stats_record(line.number, line.num_prompt_tokens, answer))
        progress.finished(answer)
    return unread


def _checked_id(value: Any) -> Any:
    """An id that can be written again.

    Raises:
        ValueError: it can't.
    """
    if depth_of(value) > MAX_DEPTH:
        raise ValueError(f"id: must be nested at most {MAX_DEPTH} deep")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError("id: must be standard JSON, which has no NaN and no infinity") from error
    return value


def _shortened(error: str) -> str:
    """The begin of an error, which says what is wrong, and its end, which says what is right."""
    if len(error) <= _MAX_ERROR_CHARACTERS:
        return error
    half = (_MAX_ERROR_CHARACTERS - len(" ... ")) // 2
    return f"{error[:half]} ... {error[-half:]}"


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


class _OrderedFiles:
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

    def __enter__(self) -> "_OrderedFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


class _Progress:
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

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
