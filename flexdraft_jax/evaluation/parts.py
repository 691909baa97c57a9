"""A file of requests on several processes, one per host: each answers a share of the lines.

    OUTPUT.part-00000-of-00002.input    the process's share; lines of the others are empty
    OUTPUT.part-00000-of-00002          its answers, and beside them what `decode_file` writes
    OUTPUT.lock                         locked while a run writes any of these
    OUTPUT, OUTPUT.stats.jsonl          joined from the parts of all, in the order of the input

No process waits for another one before all are done. Parts stay: a run that is started again with
as many processes goes on with them.
"""

import heapq
import json
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from rich.console import Console

from flexdraft_jax.data.fingerprints import claim_output, file_digest, refuse_other_files
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.evaluation.decode_file import check_template, decode_file, stats_path
from flexdraft_jax.evaluation.file_stats import FileSummary, summarise
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.request_lines import LineSettings
from flexdraft_jax.parallel.locks import locked_by_main
from flexdraft_jax.parallel.processes import is_main, main_first

_PIECE_BYTES = 2**20  # Of a line, however long it is.


def decode_together(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    models: Models,
    engine: DecodeEngine,
    settings: LineSettings,
    console: Console,
) -> FileSummary:
    """`decode_file` on all processes, which call this alike; on one it is the same.

    Raises:
        ValueError: as `decode_file`, or `output` was begun with another number of processes, or is
            being written by another run.
        FileNotFoundError: there is no file at `path`.
    """
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return decode_file(path, output, models, engine, settings, console)
    output = Path(output)
    check_template(path, models, settings)  # All alike; each in its share might not be.
    refuse_other_files(output)
    with locked_by_main(output.with_name(f"{output.name}.lock"), f"output={str(output)!r}"):
        claim_output(output, {"input": file_digest(path), "processes": count})
        share = write_share(path, output, index, count)
        decode_file(share, part_path(output, index, count), models, engine, settings, console)
        multihost_utils.sync_global_devices("decode_file: parts")
        with main_first("decode_file: joined"):
            if is_main():
                join_parts(output, count)
        return summarise(stats_path(output))


def write_share(path: str | os.PathLike[str], output: Path, index: int, count: int) -> Path:
    """Writes the lines that a process is to answer, with the numbers that they have in the file.

    Args:
        path: JSONL file.
        output: file that parts lie beside.
        index: of the process.
        count: of processes.

    Returns:
        The share.
    """
    share = part_path(output, index, count)
    share = share.with_name(f"{share.name}.input")
    unfinished = share.with_name(f"{share.name}.unfinished")
    number = 0
    with open(path, "rb") as lines, unfinished.open("wb") as file:
        while piece := lines.readline(_PIECE_BYTES):
            whole = piece.endswith(b"\n")
            file.write(piece if number % count == index else b"\n" * whole)
            number += whole
    unfinished.replace(share)
    return share


def part_path(output: Path, index: int, count: int) -> Path:
    """Where the answers of a process lie."""
    return output.with_name(f"{output.name}.part-{index:05d}-of-{count:05d}")


def join_parts(output: Path, count: int) -> None:
    """Writes the answers of all parts, and their stats, in the order of the input."""
    parts = [part_path(output, index, count) for index in range(count)]
    _join(parts, output)
    _join([stats_path(part) for part in parts], stats_path(output))


def _join(parts: list[Path], output: Path) -> None:
    unfinished = output.with_name(f"{output.name}.unfinished")
    files = [part.open("rb") for part in parts]
    with unfinished.open("wb") as joined:
        joined.writelines(heapq.merge(*files, key=_number))
    for file in files:
        file.close()
    unfinished.replace(output)


def _number(record: Any) -> int:
    return json.loads(record)["line"]
