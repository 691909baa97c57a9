"""What a run writes about itself: a metrics file, TensorBoard, a plot of tau; and its warnings."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

from flexdraft_jax.training.progress import Metric

# Below this share of what training expects, real tau is not merely behind: something is wrong.
_LEAST_REAL_SHARE = 0.6
_NAMED_ROWS = 4
_NAMED_TOKENS = 12


class MetricsFile:
    """Appends metrics to `metrics.jsonl`; a resumed run first drops what it will write again."""

    def __init__(self, path: Path, first_step: int):
        """Opens `path`, keeping only lines of steps up to `first_step`."""
        # A line that is damaged is of no step.
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= first_step]
        _replace(path, "".join(line + "\n" for line in kept).encode())
        self._path = path

    def write(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Appends one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def read(self) -> list[dict[str, Metric]]:
        """Every line."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]


class Logbook:
    """Records a run in its working directory; process 0 alone has one.

    `metrics.jsonl` and `tensorboard/` get the same numbers, but for speed: it differs from run to
    run, so it stays out of the file, which a resumed run writes exactly like one that never
    stopped.
    """

    def __init__(self, work_dir: Path, first_step: int):
        """Opens the files in `work_dir`, dropping what was written after `first_step`."""
        self._metrics = MetricsFile(work_dir / "metrics.jsonl", first_step)
        self._plot = work_dir / "tau.png"
        self._board = SummaryWriter(
            str(work_dir / "tensorboard"),
            purge_step=first_step + 1 if first_step else None,
            # File names hold the second; this keeps a quick resume from the file before it.
            filename_suffix=f".{first_step}",
        )

    def trained(self, step: int, values: Mapping[str, Metric], speed: Mapping[str, float]) -> None:
        """Records the metrics of a training step and the speed of the steps before it."""
        self._metrics.write(step, values)
        self._add("train", step, values)
        self._add("speed", step, speed)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Records an evaluation, and draws tau so far where it measured any."""
        self._metrics.write(step, values)
        self._add("evaluation", step, values)
        self._board.flush()
        if any(name.startswith("tau_") for name in values):
            plot_tau(self._metrics.read(), self._plot)

    def close(self) -> None:
        """Writes out what is still in memory."""
        self._board.close()

    def _add(self, group: str, step: int, values: Mapping[str, Metric]) -> None:
        for name, value in values.items():
            if isinstance(value, list):  # Of slots 1, 2, ...
                for slot, number in enumerate(value, start=1):
                    self._board.add_scalar(f"{group}/{name}/{slot}", number, step)
            else:
                self._board.add_scalar(f"{group}/{name}", value, step)


def plot_tau(lines: Sequence[Mapping[str, Metric]], path: Path) -> None:
    """Draws tau of real decoding over steps, per domain, beside what training expects.

    Args:
        lines: of the metrics file.
        path: of the PNG.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="tau (tokens per step)")
    names = sorted({name for line in lines for name in line if name.startswith("tau_")})
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"real, {name[4:]}")
    expected = [(line["step"], line["expected_tau"]) for line in lines if "expected_tau" in line]
    if expected:
        axes.plot(*zip(*expected, strict=True), color="grey", alpha=0.6, label="expected")
    axes.grid(alpha=0.3)
    axes.legend()
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=120)
    os.replace(unfinished, path)


def disagreement(expected: float, real: float) -> str | None:
    """A warning if real decoding falls far behind what training measures; None if it does not.

    Args:
        expected: tau that acceptance probabilities on training rows promise.
        real: tau of real decoding on held-out prompts.
    """
    if real >= _LEAST_REAL_SHARE * expected:
        return None
    return (
        f"warning: real tau is {real:.2f} where training expects {expected:.2f}, so training sees "
        "something else than decoding does. Check\n"
        "  1. the chat template: training rows and prompts must be written by the same one\n"
        "  2. the response mask: it must cover what the model writes and nothing else\n"
        "  3. positions: each document must count from 0, as a prompt does"
    )


def name_bad_rows(tokens: NDArray[np.int32], row_loss: NDArray[np.float32] | None) -> str:
    """Says which rows of a batch have a loss that is no number.

    Args:
        tokens: [B, T].
        row_loss: [B]; None where the step does not tell, then all rows are named.
    """
    bad = np.arange(len(tokens)) if row_loss is None else np.flatnonzero(~np.isfinite(row_loss))
    if not bad.size:
        return f"each of the batch's {len(tokens)} rows has a finite loss"
    rows = [
        f"row {row} (tokens {' '.join(map(str, tokens[row, :_NAMED_TOKENS]))} ...)"
        for row in bad[:_NAMED_ROWS]
    ]
    more = [f"and {bad.size - _NAMED_ROWS} more"] if bad.size > _NAMED_ROWS else []
    what = "rows of the batch" if row_loss is None else "rows without a finite loss"
    return f"{what}, {bad.size} of {len(tokens)}: {', '.join(rows + more)}"


def _step_of(line: str) -> float:
    """The step of a line; one that a crash cut short, or that is damaged, belongs to none."""
    try:
        values = json.loads(line)
        step = values["step"]
        if isinstance(step, int) and all(_is_metric(value) for value in values.values()):
            return step
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        pass
    return math.inf


def _is_metric(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(x, float | int) for x in value)
    return isinstance(value, float | int)


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
