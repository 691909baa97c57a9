"""On-policy conversations: every response rewritten by the target itself, greedily.

A drafter has to guess what its target says, not what people say; responses of the target's own are
worth more than any other part of the recipe. Several processes share the lines of one file:

    OUTPUT.settings.json            what the responses depend on; a second run must bring the same
    OUTPUT.part-00000-of-00002      finished lines of one process, as they come
    OUTPUT.lock                     locked while a run writes any of these
    OUTPUT.rejected.jsonl           lines that can't be answered, with their reasons
    OUTPUT.report.json              what became of the lines
    OUTPUT                          written last, in the order of the input

Responses are kept as token ids, because decoding and encoding again can change them.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flexdraft_jax.checkpoints.paths import read_json
from flexdraft_jax.config import check_fields
from flexdraft_jax.data.conversations import Rejected, keep_whole_lines, read_lines, whole_lines
from flexdraft_jax.data.fingerprints import (
    claim_output,
    file_digest,
    refuse_other_files,
    target_fingerprint,
    tokenizer_fingerprint,
    write_json,
)
from flexdraft_jax.data.prepare import Track
from flexdraft_jax.parallel.locks import locked_by_main
from flexdraft_jax.parallel.processes import is_main, main_first
from flexdraft_jax.training.progress import track as show_progress
from flexdraft_jax.training.rewriting import Record, Writer, answer_lines


@dataclasses.dataclass(frozen=True)
class RegenerateReport:
    """What became of the lines of a file.

    Attributes:
        lines: that are not blank.
        conversations: lines answered.
        dropped: the others, counted by kind of reason.
        documents: written; several to a conversation where the template rewrites earlier turns.
        responses: written.
        cut: responses that reached the largest length.
        response_tokens: in all responses.
    """

    lines: int = 0
    conversations: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    documents: int = 0
    responses: int = 0
    cut: int = 0
    response_tokens: int = 0

    def with_line(self, record: Record) -> RegenerateReport:
        """The report with one more line in it."""
        if "rejected" in record:
            kind = Rejected(**record["rejected"]).kind
            dropped = dict(Counter(self.dropped) + Counter([kind]))
            return dataclasses.replace(self, lines=self.lines + 1, dropped=dropped)
        return dataclasses.replace(
            self,
            lines=self.lines + 1,
            conversations=self.conversations + 1,
            documents=self.documents + len(record["documents"]),
            responses=self.responses + record["responses"],
            cut=self.cut + record["cut"],
            response_tokens=self.response_tokens + record["response_tokens"],
        )

    def cells(self) -> list[tuple[str, str]]:
        """Name and value of everything, for a table."""
        return [
            ("lines", f"{self.lines:,}"),
            ("conversations", f"{self.conversations:,}"),
            *((f"dropped, {kind}", f"{count:,}") for kind, count in self.dropped.items()),
            ("responses", f"{self.responses:,}"),
            ("cut at the largest length", f"{self.cut:,}"),
            ("response tokens", f"{self.response_tokens:,}"),
            ("documents", f"{self.documents:,}"),
        ]


def regenerate(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    writer: Writer,
    track: Track = show_progress,
) -> RegenerateReport:
    """Rewrites every response of a file; started again, it goes on with the lines that are missing.

    Of a conversation of several turns, each response is written behind the rewritten ones before
    it. An unanswered last message is answered too. A conversation that outgrows the target's
    positions ends there. What is written depends neither on the batch size nor on the number of
    processes, up to near-ties of two tokens.

    Args:
        path: JSONL file; see :mod:`flexdraft_jax.data.conversations`.
        output: JSONL file to write.
        writer: of the responses.
        track: shows progress.

    Raises:
        ValueError: `output` was begun with other settings, or is being written by another run, or
            no line can be answered.
        FileNotFoundError: there is no file at `path`.
    """
    path, output = Path(path), Path(output)
    report = _beside(output, "report.json")
    refuse_other_files(output, _parts(output))
    with locked_by_main(_beside(output, "lock"), f"output={str(output)!r}"):
        begin(path, output, writer)
        if not output.exists():
            write_part(path, output, writer, jax.process_index(), jax.process_count(), track)
            multihost_utils.sync_global_devices("regenerate: parts")
            with main_first("regenerate: merged"):
                if is_main():
                    merge_parts(path, output)
    try:
        found = RegenerateReport(**read_json(report))
        check_fields(found)
    except TypeError as error:
        raise ValueError(f"{report}: is damaged: {error}") from error
    return found


def begin(path: Path, output: Path, writer: Writer) -> None:
    """Records what the responses depend on, or checks that it is what it was.

    Raises:
        ValueError: `output` was begun with other settings, or is some other file.
    """
    claim_output(
        output,
        {
            "input": file_digest(path),
            "target": target_fingerprint(writer.target),
            "dtype": str(writer.target.dtype),
            "tokenizer": tokenizer_fingerprint(writer.tokenizer),
            "max_new_tokens": writer.max_new_tokens,
            "template_kwargs": dict(writer.template_kwargs),
        },
        _parts(output),
    )


def write_part(
    path: Path,
    output: Path,
    writer: Writer,
    process_index: int,
    process_count: int,
    track: Track = show_progress,
) -> None:
    """Answers this process's share of the lines that no part holds yet.

    Args:
        path: JSONL file.
        output: file that the parts lie beside.
        writer: of the responses.
        process_index: which share.
        process_count: number of shares.
        track: shows progress.
    """
    part = _beside(output, f"part-{process_index:05d}-of-{process_count:05d}")
    keep_whole_lines(part)
    done = {number for other in _parts(output) for number, _ in _places(other)}

    def mine(number: int) -> bool:
        return number % process_count == process_index

    share = [number for number, _ in read_lines(path) if mine(number)]
    left = (x for x in read_lines(path) if mine(x[0]) and x[0] not in done)
    with track("the target writes", len(share)) as advance, part.open("ab") as file:
        advance(len(done.intersection(share)))
        for finished in answer_lines(left, writer):
            for record in finished:
                file.write(sealed(record))
            file.flush()
            advance(len(finished))


def merge_parts(path: Path, output: Path) -> RegenerateReport:
    """Writes the lines of all parts in the order of the input, and removes the parts.

    Raises:
        ValueError: lines are missing or damaged, or none was answered.
    """
    places: dict[int, tuple[Path, int]] = {}
    for part in _parts(output):
        places |= {number: (part, offset) for number, offset in _places(part)}
    wanted = [number for number, _ in read_lines(path)]
    missing = len(set(wanted) - places.keys())
    if missing:
        raise ValueError(f"{output}: {missing} lines are not finished; run every process again")
    report = RegenerateReport()
    unfinished = _beside(output, "unfinished")
    with unfinished.open("w") as file, _beside(output, "rejected.jsonl").open("w") as side_file:
        for number in wanted:
            record = _read_at(*places[number])
            report = report.with_line(record)
            if "rejected" in record:
                side_file.write(json.dumps({"line": number, **record["rejected"]}) + "\n")
            for document in record.get("documents", ()):
                file.write(json.dumps({"line": number, **document}) + "\n")
    if not report.conversations:
        raise ValueError(f"{path}: no line of {report.lines} can be answered: {report.dropped}")
    write_json(_beside(output, "report.json"), dataclasses.asdict(report))
    unfinished.replace(output)
    for part in _parts(output):
        part.unlink()
    return report


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.name}.{suffix}")


def _parts(output: Path) -> list[Path]:
    """All parts, those of another number of processes too."""
    return sorted(output.parent.glob(f"{glob.escape(output.name)}.part-*-of-*"))


def _places(part: Path) -> Iterator[tuple[int, int]]:
    """The line that each record is of, without reading all of the record, and where it begins."""
    offset = 0
    for record in whole_lines(part):
        try:
            yield int(record[len(b'{"line":') : record.index(b",")]), offset
        except ValueError as error:
            raise _damaged(part, offset) from error
        offset += len(record)


def sealed(record: Record) -> bytes:
    """A line of a part. A digit that changes in it would be another response, so it has a sum."""
    text = json.dumps(record, separators=(",", ":"))
    return f'{text[:-1]},"crc32":{zlib.crc32(text.encode())}}}\n'.encode()


def _read_at(part: Path, offset: int) -> Record:
    with part.open("rb") as file:
        file.seek(offset)
        line = file.readline()
    try:
        record = json.loads(line)
        del record["crc32"]
        whole = sealed(record) == line
    except (LookupError, RecursionError, TypeError, ValueError):
        whole = False
    if not whole:
        raise _damaged(part, offset)
    return record


def _damaged(part: Path, offset: int) -> ValueError:
    with part.open("rb") as file:
        place = file.read(offset).count(b"\n") + 1
    return ValueError(
        f"{part}: its line {place} is damaged; restore the file, or take this line out of it, and "
        "it is written again"
    )
