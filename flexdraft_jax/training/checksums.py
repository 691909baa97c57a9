"""Checksums beside checkpoints, because orbax restores a flipped byte without a word.

Beside the folder of a step, `STEP.sha256` lists every file in it, in the format of sha256sum:
`cd checkpoints && sha256sum -c 400.sha256` checks by hand. It is written when the step is whole; a
step without it was not finished, or not by us, and is not trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flexdraft_jax.data.fingerprints import file_digest

_SUFFIX = ".sha256"


def write_checksums(step_dir: Path) -> None:
    """Writes the checksums of every file of a whole step, and drops those of deleted steps."""
    files = sorted(path for path in step_dir.rglob("*") if path.is_file())
    names = [path.relative_to(step_dir.parent).as_posix() for path in files]
    lines = [f"{digest}  {name}\n" for digest, name in zip(_digests(files), names, strict=True)]
    unfinished = _beside(step_dir).with_suffix(".unfinished")
    unfinished.write_text("".join(lines))
    os.replace(unfinished, _beside(step_dir))
    for path in step_dir.parent.glob(f"*{_SUFFIX}"):
        if not path.with_suffix("").exists():
            path.unlink()


def fault(step_dir: Path) -> str | None:
    """What is wrong with a step, in plain words; None if every byte is as it was written."""
    if not any(step_dir.iterdir()):
        return "the directory is empty"
    if not _beside(step_dir).exists():
        return "it has no checksums: it was never finished"
    text = _beside(step_dir).read_text(errors="replace")
    lines = [line.split("  ", 1) for line in text.splitlines()]
    if not lines or any(len(line) != 2 for line in lines):
        return "its checksums are torn"
    files = [step_dir.parent / name for _, name in lines]
    names = [name.partition("/")[2] for _, name in lines]
    missing = [name for path, name in zip(files, names, strict=True) if not path.is_file()]
    if missing:
        return f"missing: {', '.join(missing)}"
    more = {path for path in step_dir.rglob("*") if path.is_file()} - set(files)
    if more:
        return f"without checksums: {', '.join(sorted(path.name for path in more))}"
    changed = [
        name
        for name, (digest, _), found in zip(names, lines, _digests(files), strict=True)
        if digest != found
    ]
    return f"changed since it was written: {', '.join(changed)}" if changed else None


def set_damaged_aside(directory: Path) -> dict[int, str]:
    """Checks every step in `directory` and moves the damaged ones out of it.

    They go to `damaged_checkpoints` beside it, where nothing reads them; a person may look at them
    and delete them.

    Returns:
        What is wrong with each damaged step.
    """
    faults = {}
    for step_dir in steps(directory):
        wrong = fault(step_dir)
        if wrong is None:
            continue
        faults[int(step_dir.name)] = wrong
        aside = directory.with_name("damaged_checkpoints")
        aside.mkdir(exist_ok=True)
        taken = len(list(aside.glob(f"{step_dir.name}.*")))
        os.replace(step_dir, aside / f"{step_dir.name}.{taken}")
        _beside(step_dir).unlink(missing_ok=True)
    return faults


def steps(directory: Path) -> list[Path]:
    """Folders of steps, the oldest first; unfinished ones of an interrupted save are none."""
    found = [path for path in directory.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def _beside(step_dir: Path) -> Path:
    return step_dir.with_name(step_dir.name + _SUFFIX)


def _digests(files: Iterable[Path]) -> list[str]:
    # Hashing leaves Python's lock, so threads share the work.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(file_digest, files))
