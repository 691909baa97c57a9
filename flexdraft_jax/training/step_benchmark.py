"""Time and memory of the drafter's step beside a plain one, in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.pipeline import pack
from flexdraft_jax.evaluation.benchmark import describe_size, environment
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import (
    Progress,
    Spread,
    interleave,
    ratios,
    seconds,
    silent,
)
from flexdraft_jax.models.draft import Draft, init_draft
from flexdraft_jax.models.flexdraft import FlexDraft
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.anchors import sample_groups
from flexdraft_jax.training.config import DraftStepConfig, ObjectiveConfig, OptimizerConfig
from flexdraft_jax.training.draft_step import loss_and_gradients
from flexdraft_jax.training.objectives import mean_loss
from flexdraft_jax.training.optimizer import Params, apply_gradients, first_state, make_optimizer
from flexdraft_jax.training.plain_step import plain_loss_and_gradients
from flexdraft_jax.training.rows import Rows

_DOCUMENTS_PER_ROW = 4
_PROMPT_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class StepBenchmarkSettings:
    """What to measure.

    Attributes:
        draft: D, n and r.
        batch_size: B, packed rows per step.
        sequence_length: T, tokens of a row.
        anchors: A, mask groups of a row.
        step: how ours is computed; the plain step takes the compute dtype alone.
        objective: the loss of both.
        repeats: of both steps, interleaved.
    """

    draft: DraftConfig
    batch_size: int = 4
    sequence_length: int = 256
    anchors: int = 32
    step: DraftStepConfig = DraftStepConfig(chunk=4)
    objective: ObjectiveConfig = ObjectiveConfig()
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("batch_size", "anchors", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        shortest = max(self.anchors, 8 * _DOCUMENTS_PER_ROW)
        if self.sequence_length < shortest:
            raise ValueError(
                f"sequence_length={self.sequence_length}: must be at least {shortest}, for "
                f"anchors={self.anchors} and {_DOCUMENTS_PER_ROW} documents a row"
            )
        self.step.check(self.batch_size, self.anchors)


@dataclasses.dataclass(frozen=True)
class TrainStepRow:
    """What one training step costs.

    Attributes:
        method: "draft step" or "plain step".
        loss: of the first step; the same for both but for rounding.
        milliseconds: per step, compilation excluded.
        speedup: over the plain step.
        tokens_per_second: clean tokens of packed rows.
        anchors_per_second: mask groups.
        temporary_bytes: what the compiled program needs beside its arguments and results.
        peak_bytes: all of it; what is donated is counted once.
        memory: peak, in peaks of the plain step.
    """

    method: str
    loss: float
    milliseconds: Spread
    speedup: Spread
    tokens_per_second: float
    anchors_per_second: float
    temporary_bytes: int
    peak_bytes: int
    memory: float


@dataclasses.dataclass(frozen=True)
class StepBenchmarkReport:
    """Everything that one run measured.

    Attributes:
        model: its name and size.
        environment: versions, device, processors.
        settings: what was asked for.
        rows: the plain step and ours.
    """

    model: str
    environment: dict[str, Any]
    settings: StepBenchmarkSettings
    rows: list[TrainStepRow]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """For people."""
        return _table(self)


def benchmark_step(
    target: Target, settings: StepBenchmarkSettings, name: str, progress: Progress = silent
) -> StepBenchmarkReport:
    """Times both steps in turns, on random tokens: a step costs what its shapes cost.

    Args:
        target: any weights.
        settings: what to measure.
        name: of the target, for the report.
        progress: told about each part.

    Raises:
        ValueError: a draft that does not fit the target.
    """
    draft = init_draft(
        target,
        num_draft_layers=settings.draft.num_draft_layers,
        block_size=settings.draft.block_size,
        calibration_rank=settings.draft.calibration_rank,
        rng=jax.random.key(1),
    )
    frozen = jax.tree.map(lambda x: x.astype(settings.step.compute_dtype), target.params)
    rows = _random_rows(target.config.vocab_size, settings)
    timers = {}
    for method, gradients in _methods(target, settings).items():
        progress(f"{method}: compiling and warming up")
        timers[method] = _StepTimer(gradients, frozen, draft, rows, settings)
    progress(f"{settings.repeats} repeats")
    times = interleave(timers, settings.repeats)
    plain_peak, plain_times = peak_bytes(timers["plain step"].memory), times["plain step"]
    tokens = settings.batch_size * settings.sequence_length
    groups = settings.batch_size * settings.anchors
    found = []
    for method, timer in timers.items():
        spread, peak = Spread.of(times[method]), peak_bytes(timer.memory)
        found.append(
            TrainStepRow(
                method=method,
                loss=timer.loss,
                milliseconds=Spread(*(1e3 * s for s in dataclasses.astuple(spread))),
                speedup=ratios(plain_times, times[method]),
                tokens_per_second=tokens / spread.median,
                anchors_per_second=groups / spread.median,
                temporary_bytes=timer.memory.temp_size_in_bytes,
                peak_bytes=peak,
                memory=peak / plain_peak,
            )
        )
    label = f"{name}, {describe_size(target, draft)}, V = {target.config.vocab_size}"
    return StepBenchmarkReport(label, environment(), settings, found)


def peak_bytes(memory: Any) -> int:
    """Arguments, results and temporaries of `Compiled.memory_analysis`; donated ones once."""
    both = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return both + memory.temp_size_in_bytes - memory.alias_size_in_bytes


_Gradients = Callable[..., Any]


def _methods(target: Target, settings: StepBenchmarkSettings) -> dict[str, _Gradients]:
    """From target, draft, rows and groups to gradients and scores."""
    dtype = settings.step.compute_dtype
    model = FlexDraft(target.config, settings.draft, dtype, attention=settings.step.attention)

    def plain(target_params: Params, draft_params: Params, *batch: Any) -> Any:
        cast = jax.tree.map(lambda x: x.astype(dtype), draft_params)
        return plain_loss_and_gradients(model, settings.objective, target_params, cast, *batch)

    def ours(*args: Any) -> Any:
        return loss_and_gradients(model, settings.objective, settings.step, *args)

    return {"plain step": plain, "draft step": ours}


class _StepTimer:
    """Seconds of one step, from drawing anchors to the moved parameters."""

    def __init__(
        self,
        gradients: _Gradients,
        target_params: Params,
        draft: Draft,
        rows: Rows,
        settings: StepBenchmarkSettings,
    ) -> None:
        """Compiles, and takes a step to warm up."""
        optimizer = make_optimizer(OptimizerConfig(1000, settings.batch_size, 1e-4))

        def step(state: Any, target_params: Params, rows: Rows) -> Any:
            groups = sample_groups(
                jax.random.fold_in(jax.random.key(0), state.step),
                rows,
                num_anchors=settings.anchors,
                block_size=settings.draft.block_size,
            )
            found, scores = gradients(target_params, state.params, rows, groups)
            loss = mean_loss(scores.losses, groups.counted[:, :, 1:])
            return apply_gradients(state, found, optimizer), loss

        self._state = first_state(draft.params, optimizer)
        self._arguments = (target_params, rows)
        self._step: Compiled = (
            jax.jit(step, donate_argnums=0).lower(self._state, *self._arguments).compile()
        )
        self.memory: Any = self._step.memory_analysis()
        self.loss = self._take_step()

    def __call__(self) -> float:
        return seconds(self._take_step)

    def _take_step(self) -> float:
        self._state, loss = self._step(self._state, *self._arguments)
        jax.block_until_ready(self._state)
        return float(loss)


def _random_rows(vocab_size: int, settings: StepBenchmarkSettings) -> Rows:
    """Full rows of a few documents each, mostly response."""
    rng = np.random.default_rng(0)
    size, rest = divmod(settings.sequence_length, _DOCUMENTS_PER_ROW)
    turns: list[EncodedTurn] = []
    for index in range(settings.batch_size * _DOCUMENTS_PER_ROW):
        length = size + rest * (index % _DOCUMENTS_PER_ROW == 0)
        prompt = int(length * _PROMPT_SHARE)
        tokens = rng.integers(0, vocab_size, length).tolist()
        turns.append(EncodedTurn(tokens, [False] * prompt + [True] * (length - prompt)))
    arrays: dict[str, Any] = pack(turns, settings.sequence_length).arrays()
    return Rows(**arrays)


def _table(report: StepBenchmarkReport) -> Table:
    settings = report.settings
    return Table(
        title=f"One training step: {report.model}",
        columns=("", "ms", "speed-up", "tokens/s", "anchors/s", "peak MiB", "of plain", "loss"),
        rows=[
            (
                row.method,
                f"{row.milliseconds:.1f}",
                f"{row.speedup:.2f}",
                f"{row.tokens_per_second:.0f}",
                f"{row.anchors_per_second:.0f}",
                f"{row.peak_bytes / 2**20:.0f}",
                f"{row.memory:.2f}",
                f"{row.loss:.5f}",
            )
            for row in report.rows
        ],
        note=(
            f"{settings.batch_size} rows of {settings.sequence_length} tokens, "
            f"{settings.anchors} anchors a row, n = {settings.draft.block_size}, "
            f"D = {settings.draft.num_draft_layers}, {settings.step.compute_dtype}; "
            f"chunk {settings.step.chunk or 'off'}, microbatches {settings.step.microbatches}, "
            f"remat {'on' if settings.step.remat else 'off'}. Median (lowest-highest) of "
            f"{settings.repeats} interleaved repeats, compilation excluded. "
            + ", ".join(f"{name} {value}" for name, value in report.environment.items())
            + "."
        ),
    )
