"""From a file of conversations to packed rows on disk, built once and read by every training run.

What lies where is said in :mod:`flexdraft_jax.data.prepared`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.checkpoints.paths import require_local
from flexdraft_jax.data.builder import TurnSource, prepare_rows
from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.conversations import count_lines
from flexdraft_jax.data.encoded import encode_lines, load_chunk
from flexdraft_jax.data.fingerprints import (
    check_recorded,
    file_digest,
    read_settings,
    tokenizer_fingerprint,
    write_json,
)
from flexdraft_jax.data.prepared import (
    FORMAT,
    SPLIT,
    HeldOut,
    Prepared,
    Report,
    load_prepared,
    record_digest,
    rows_directory,
)
from flexdraft_jax.parallel.locks import locked

_LOCK, _SETTINGS = "lock", "settings.json"
# Shows progress: given a title and a total, a context with a function to report what was done.
Track = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How conversations become rows.

    Attributes:
      sequence_length: T, tokens in a row; longer documents lose their end.
      held_out: how many different prompts to keep out of training.
      template_kwargs: variables of the chat template, such as {"enable_thinking": False}.
    """

    sequence_length: int = 2048
    held_out: int = 64
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sequence_length < 8:
            raise ValueError(f"sequence_length={self.sequence_length}: must be at least 8")
        if self.held_out < 0:
            raise ValueError(f"held_out={self.held_out}: must be 0 or more")


@contextmanager
def _no_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    del what, total
    yield lambda finished: None


def prepare(
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str],
    config: PrepareConfig,
    track: Track = _no_progress,
) -> Prepared:
    """Builds packed rows from a JSONL file, goes on with a build that was interrupted, or loads.

    Lines that can't be used are written to a side file, and the rest goes on. Where several
    processes share `output`, the first builds and the others wait for it.

    Args:
      path: of the JSONL file; its shapes are those of :mod:`flexdraft_jax.data.conversations`.
      tokenizer: of the target, with a chat template.
      output: folder to build in.
      config: how.
      track: shows progress.

    Raises:
      ValueError: `output` holds data from another file, tokenizer or configuration, or another run
        builds there, or no line can be used, or too few to hold prompts out.
      FileNotFoundError: there is no file at `path`.
    """
    output = Path(output)
    try:
        if jax.process_index() == 0:
            require_local(output)
            _refuse_other_files(output)
            with locked(output / _LOCK, f"output={os.fspath(output)!r}"):
                _build(Path(path), tokenizer, output, config, track)
    finally:  # After an error too: the others would wait until a time-out, and say nothing.
        multihost_utils.sync_global_devices("prepare")
    return load_prepared(output)


def _build(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    config: PrepareConfig,
    track: Track,
) -> None:
    settings = {
        "input": file_digest(path),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        **dataclasses.asdict(config),
    }
    _claim(output, settings)
    if (output / "prepared.json").exists():
        return
    with track("encoding", count_lines(path)) as advance:
        files = encode_lines(
            path,
            output / "encoded",
            tokenizer,
            length=config.sequence_length,
            template_kwargs=config.template_kwargs,
            advance=advance,
        )
    report = _tally(files, output / "rejected.jsonl", config.sequence_length)
    if not report.conversations:
        raise ValueError(f"{path}: no line of {report.lines} can be used: {report.dropped}")
    held_out = _held_out_keys(files, config.held_out)
    report, fingerprint = _survey(files, held_out, report)
    if not report.documents:
        raise ValueError(
            f"held_out={config.held_out}: leaves nothing to train on, {path} has "
            f"{len(held_out)} different prompts"
        )
    _write_held_out(output / "held_out.jsonl", files, held_out, tokenizer)

    shutil.rmtree(output / "rows", ignore_errors=True)  # of a build that was interrupted
    with track("packing", report.documents) as advance:
        turns = partial(_training_turns, files, held_out, advance)
        source = TurnSource("conversations", fingerprint, {SPLIT: turns})
        rows = prepare_rows(source, length=config.sequence_length, data_dir=output / "rows")
    report = dataclasses.replace(report, rows=len(rows[SPLIT]))
    write_json(output / "report.json", dataclasses.asdict(report))
    _seal(output, fingerprint, config.sequence_length, settings["tokenizer"])
    shutil.rmtree(output / "encoded")


def _refuse_other_files(output: Path) -> None:
    """Raises ValueError for a folder that is somebody else's."""
    others = output.is_dir() and any(file.name != _LOCK for file in output.iterdir())
    if others and not (output / _SETTINGS).exists():
        raise ValueError(
            f"output={os.fspath(output)!r} holds other files: must be a new folder, or one that "
            "this command made"
        )


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Records what the build is from, or checks that it is for the same settings."""
    recorded = output / _SETTINGS
    if recorded.exists() and not (output / "prepared.json").exists():
        # Until the build is whole, it is open how many prompts are held out.
        before = read_settings(recorded)
        write_json(recorded, {**before, "held_out": settings["held_out"]})
    check_recorded(recorded, settings)


def _tally(files: list[Path], rejected: Path, length: int) -> Report:
    """Counts lines, and writes those that can't be used to a side file."""
    lines = conversations = 0
    dropped: Counter[str] = Counter()
    with rejected.open("w") as side_file:
        for chunk in map(load_chunk, files):
            lines += chunk.num_lines
            conversations += chunk.num_used
            for bad in chunk.rejected:
                dropped[bad.rejected.kind] += 1
                fields = {"line": bad.line, **dataclasses.asdict(bad.rejected)}
                side_file.write(json.dumps(fields) + "\n")
    by_count = dict(dropped.most_common())
    return Report(lines, conversations, by_count, sequence_length=length)


def _held_out_keys(files: list[Path], count: int) -> NDArray[np.uint64]:
    """The `count` smallest keys: a choice that depends on the prompts alone, not on their order."""
    found = [chunk.keys[chunk.opens] for chunk in map(load_chunk, files)]
    keys = np.unique(np.concatenate(found))
    if len(keys) < count:
        raise ValueError(
            f"held_out={count}: must be under the number of different prompts, {len(keys)}; plain "
            "text has none"
        )
    return keys[:count]


def _survey(files: list[Path], held_out: NDArray[np.uint64], report: Report) -> tuple[Report, str]:
    """Counts what is left for training, and hashes it."""
    length = report.sequence_length
    digest = hashlib.sha256(f"{FORMAT}:{length}".encode())
    documents = cut = tokens = response_tokens = 0
    for chunk in map(load_chunk, files):
        kept = ~np.isin(chunk.keys, held_out)
        documents += int(kept.sum())
        cut += int((chunk.lengths[kept] > length).sum())
        for array in (chunk.tokens, chunk.response_mask, chunk.lengths, kept):
            digest.update(array.tobytes())
        for index, (ids, mask) in enumerate(chunk.documents()):
            if kept[index]:
                tokens += min(len(ids), length)
                response_tokens += int(mask[:length].sum())
    report = dataclasses.replace(
        report,
        held_out=len(held_out),
        documents=documents,
        cut=cut,
        tokens=tokens,
        response_tokens=response_tokens,
    )
    return report, digest.hexdigest()[:16]


def _training_turns(
    files: list[Path], held_out: NDArray[np.uint64], advance: Callable[[int], None]
) -> Iterator[EncodedTurn]:
    for chunk in map(load_chunk, files):
        kept = ~np.isin(chunk.keys, held_out)
        for index, (tokens, mask) in enumerate(chunk.documents()):
            if kept[index]:
                yield EncodedTurn(tokens.tolist(), mask.tolist())
        advance(int(kept.sum()))


def _write_held_out(
    path: Path,
    files: list[Path],
    held_out: NDArray[np.uint64],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Writes the first document of each held-out prompt, in the order of the keys."""
    prompts: dict[int, HeldOut] = {}
    for chunk in map(load_chunk, files):
        wanted = np.isin(chunk.keys, held_out) & chunk.opens
        for index, (tokens, mask) in enumerate(chunk.documents()):
            key = int(chunk.keys[index])
            if wanted[index] and key not in prompts:
                prompts[key] = _held_out_prompt(tokens, mask, str(chunk.domains[index]), tokenizer)
    lines = [json.dumps(dataclasses.asdict(prompts[key])) for key in sorted(prompts)]
    path.write_text("".join(line + "\n" for line in lines))


def _held_out_prompt(
    tokens: NDArray[np.int32],
    mask: NDArray[np.bool_],
    domain: str,
    tokenizer: PreTrainedTokenizerBase,
) -> HeldOut:
    begin = int(np.argmax(mask))
    size = int(np.argmin(np.append(mask[begin:], False)))
    prompt = tokens[:begin].tolist()
    return HeldOut(
        tokens=prompt,
        text=str(tokenizer.decode(prompt)),
        reference=tokens[begin : begin + size].tolist(),
        domain=domain,
    )


def _seal(output: Path, fingerprint: str, length: int, tokenizer: str) -> None:
    """Writes down that the build is whole, with checksums of what training reads."""
    files = [output / "held_out.jsonl", output / "report.json"]
    files += sorted(rows_directory(output).iterdir())
    record = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "sequence_length": length,
        "tokenizer": tokenizer,
        "files": {str(file.relative_to(output)): file_digest(file) for file in files},
    }
    write_json(output / "prepared.json", {**record, "sha256": record_digest(record)})
