"""Data that :mod:`flexdraft_jax.data.prepare` built: packed rows, held-out prompts, a report.

DIRECTORY/settings.json    what it is built from; a second run must bring the same
DIRECTORY/lock             locked while a run builds there
DIRECTORY/encoded/         until the build is whole: token ids, where an interrupted run goes on
DIRECTORY/rejected.jsonl   lines that can't be used, with their reasons
DIRECTORY/held_out.jsonl   prompts kept out of training, to measure tau on
DIRECTORY/rows/            packed rows
DIRECTORY/report.json      what became of the lines
DIRECTORY/prepared.json    written last; what lies there, with checksums
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexdraft_jax.checkpoints.paths import read_json
from flexdraft_jax.data.builder import load_rows
from flexdraft_jax.data.fingerprints import file_digest
from flexdraft_jax.data.pipeline import RowSource

FORMAT = 1
SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A prompt kept out of training.

    Attributes:
      tokens: ids of the prompt, up to where the response begins.
      text: the same as text.
      reference: ids of the response in the file.
      domain: kind of text, "" if its line does not say.
    """

    tokens: list[int]
    text: str
    reference: list[int]
    domain: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the lines of a file.

    Attributes:
      lines: that are not blank.
      conversations: lines used.
      dropped: lines that can't be used, counted by kind of reason.
      sequence_length: T.
      held_out: different prompts kept out of training.
      documents: in the rows; several to a conversation where the template rewrites earlier turns.
      cut: documents that lost their end because they are longer than a row.
      tokens: in the rows, without padding.
      response_tokens: those of them that the assistant writes.
      rows: packed.
    """

    lines: int
    conversations: int
    dropped: dict[str, int]
    sequence_length: int
    held_out: int = 0
    documents: int = 0
    cut: int = 0
    tokens: int = 0
    response_tokens: int = 0
    rows: int = 0

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return self.tokens / (self.rows * self.sequence_length)

    @property
    def response_share(self) -> float:
        """Share of the tokens that the assistant writes."""
        return self.response_tokens / self.tokens

    def cells(self) -> list[tuple[str, str]]:
        """Name and value of everything, for a table."""
        return [
            ("lines", f"{self.lines:,}"),
            ("conversations", f"{self.conversations:,}"),
            *((f"dropped, {kind}", f"{count:,}") for kind, count in self.dropped.items()),
            ("prompts held out", f"{self.held_out:,}"),
            ("documents to train on", f"{self.documents:,}"),
            ("cut to the length of a row", f"{self.cut:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("response share", f"{self.response_share:.1%}"),
            (f"rows of {self.sequence_length} tokens", f"{self.rows:,}"),
            ("fill", f"{self.fill:.1%}"),
        ]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Data that is ready for training.

    Attributes:
      rows: packed rows [T].
      held_out: prompts kept out of them, in a fixed order.
      fingerprint: of everything in the rows and the prompts.
      sequence_length: T.
      tokenizer_fingerprint: of the tokenizer that the ids are of.
      report: how they were made.
    """

    rows: RowSource
    held_out: list[HeldOut]
    fingerprint: str
    sequence_length: int
    tokenizer_fingerprint: str
    report: Report


def prompts_that_fit(held_out: list[HeldOut], positions: int, max_new_tokens: int) -> list[HeldOut]:
    """The prompts that leave room for an answer.

    Raises:
      ValueError: there is none.
    """
    fit = [prompt for prompt in held_out if len(prompt.tokens) + max_new_tokens <= positions]
    if not fit:
        raise ValueError(
            f"none of {len(held_out)} held-out prompts leaves room for max_new_tokens="
            f"{max_new_tokens} in the target's {positions} positions: answer shorter, or prepare "
            "the data with more prompts held out"
        )
    return fit


def load_prepared(directory: str | os.PathLike[str]) -> Prepared:
    """Opens what :func:`prepare` built.

    Raises:
      ValueError: there is no finished build, it is of another version, or a file in it is missing
        or is not as it was written.
    """
    directory = Path(directory)
    try:
        recorded = read_json(directory / "prepared.json")
        found = recorded.get("format")
        if found != FORMAT:
            raise ValueError(f"format {found}, must be {FORMAT}: prepare it again")
        digest = recorded.pop("sha256", None)
        if digest != record_digest(recorded):
            raise ValueError("is not as it was written: prepare it again")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{directory} holds no finished data (prepared.json: {error}): must be the --output of "
            "train/prepare_data.py"
        ) from error
    for name, digest in recorded["files"].items():
        file = directory / name
        if not file.is_file() or file_digest(file) != digest:
            state = "is not as it was written" if file.is_file() else "is missing"
            raise ValueError(f"{file} {state}: remove {directory} and prepare it again")
    held_out = (directory / "held_out.jsonl").read_text().splitlines()
    return Prepared(
        rows=load_rows(rows_directory(directory))[SPLIT],
        held_out=[HeldOut(**json.loads(line)) for line in held_out],
        fingerprint=recorded["fingerprint"],
        sequence_length=recorded["sequence_length"],
        tokenizer_fingerprint=recorded["tokenizer"],
        report=Report(**json.loads((directory / "report.json").read_text())),
    )


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of what prepared.json holds."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def rows_directory(directory: Path) -> Path:
    """Where the one dataset of a build lies."""
    (features,) = (directory / "rows").rglob("features.json")
    return features.parent
