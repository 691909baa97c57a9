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
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from flexdraft_jax.checkpoints.paths import MAX_DEPTH, depth_of
from flexdraft_jax.data.conversations import count_lines, parse_object, read_lines
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
from flexdraft_jax.decoding.rows import nan_message
from flexdraft_jax.evaluation.file_progress import FileProgress
from flexdraft_jax.evaluation.file_stats import FileSummary, stats_record, summarise
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.measure import decode_text
from flexdraft_jax.evaluation.ordered_files import OrderedFiles, Record
from flexdraft_jax.evaluation.request_lines import (
    FIELDS,
    OWN_SETTINGS,
    LineSettings,
    read_request,
)
from flexdraft_jax.parallel.locks import locked

_MAX_ERROR_CHARACTERS = 300
_MAX_UNREAD = 100  # Names of fields without a meaning that are counted.


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
        files = stack.enter_context(OrderedFiles(path, output, stats))
        lines = itertools.islice(enumerate(read_lines(path)), files.num_lines, None)
        with FileProgress(console, files.num_lines, count_lines(path)) as progress:
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
    files: OrderedFiles,
    progress: FileProgress,
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
