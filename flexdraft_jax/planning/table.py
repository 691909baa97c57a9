"""The table of predictions: published targets on usual slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import Progress, silent
from flexdraft_jax.planning.compiling import GIB
from flexdraft_jax.planning.plans import (
    DecodePlan,
    Kept,
    TrainPlan,
    Unfinished,
    plan_decode,
    plan_train,
)
from flexdraft_jax.planning.report import PlanReport
from flexdraft_jax.planning.topology import parse_slice
from flexdraft_jax.training.config import DraftStepConfig, OptimizerConfig, TrainDraftConfig

_TARGETS = ("Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B", "Qwen3-32B")
# As they are rented: v5p-8 is four chips of two cores.
_DECODE_SLICES = {"v5e:2x4": "tensor=8", "v5p:2x2x1": "tensor=4", "v6e:2x4": "tensor=8"}
_TRAIN_SLICES = {"v5e:4x4": "fsdp=16", "v5e:16x16": "fsdp=256"}
_PROGRAMS = ("prefill", "ar", "parallel 16", "sequential")
_TAU = 5
_Plan = TypeVar("_Plan", DecodePlan, TrainPlan)


def decode_plans() -> Iterator[DecodePlan]:
    """Decoding, one line of the table each."""
    for target in _TARGETS:
        for topology, mesh in _DECODE_SLICES.items():
            yield DecodePlan(target, topology, mesh)


def train_plans() -> Iterator[TrainPlan]:
    """Training, one line of the table each: as configs/qwen3_8b_v5e_256.py, a row for each chip."""
    for target in _TARGETS:
        for topology, mesh in _TRAIN_SLICES.items():
            chips = parse_slice(topology).num_chips
            config = TrainDraftConfig(
                model=DraftConfig(num_draft_layers=5, block_size=16, calibration_rank=1024),
                train=OptimizerConfig(steps=4700, batch_size=chips, learning_rate=5e-4),
                step=DraftStepConfig(compute_dtype="bfloat16", chunk=64, remat=True),
                anchors=256,
            )
            yield TrainPlan(target, topology, mesh, config)


def decode_table(kept: Kept, progress: Progress = silent) -> Table:
    """Compiles what is not kept yet, and makes the table of the rows that are whole."""

    def row(plan: DecodePlan) -> tuple[str, ...]:
        return _decode_row(plan, plan_decode(plan, _PROGRAMS, progress=progress, kept=kept)[0])

    rows, missing = _whole(decode_plans(), row)
    return Table(
        title="Predicted: decoding 32 rows of 2,048 slots, n = 16, D = 5, bfloat16",
        columns=(
            "target",
            "slice",
            "mesh",
            "fits",
            "GiB of a chip",
            "prefill, ms",
            "plain step, ms",
            "parallel, ms",
            "sequential, ms",
            f"speed-up at tau {_TAU}",
        ),
        rows=rows,
        note="Predictions: whether it fits and memory are what the TPU's compiler says of the real "
        "programs, of the largest; times are a roofline, and nothing was run. The speed-up is that "
        "of the faster schedule over plain decoding. Prefill is one call, of 64 tokens a row."
        + missing,
    )


def train_table(kept: Kept, progress: Progress = silent) -> Table:
    """The same of training."""

    def row(plan: TrainPlan) -> tuple[str, ...]:
        (program,), of = plan_train(plan, progress, kept).programs, parse_slice(plan.topology)
        return (
            plan.target,
            of.accelerator_type,
            plan.mesh,
            "yes" if program.compiled.fits else "no",
            f"{program.compiled.memory.total / GIB:.1f}",
            f"{program.milliseconds[of.generation]:.0f}" if program.compiled.fits else "-",
        )

    rows, missing = _whole(train_plans(), row)
    return Table(
        title="Predicted: a training step, a row of 2,048 tokens for each chip, 256 anchors",
        columns=("target", "slice", "mesh", "fits", "GiB of a chip", "step, ms"),
        rows=rows,
        note="n = 16, D = 5, bfloat16, 64 anchors at a time, draft layers recomputed. Predictions, "
        "as above." + missing,
    )


def _whole(
    plans: Iterable[_Plan], row: Callable[[_Plan], tuple[str, ...]]
) -> tuple[list[tuple[str, ...]], str]:
    """The rows of plans all of whose programs are there, and a sentence about the others."""
    rows, missing = [], []
    for plan in plans:
        try:
            rows.append(row(plan))
        except Unfinished:
            missing.append(f"{plan.target} on {parse_slice(plan.topology).accelerator_type}")
    return rows, f" Not compiled yet: {', '.join(missing)}." if missing else ""


def _decode_row(plan: DecodePlan, report: PlanReport) -> tuple[str, ...]:
    of = parse_slice(plan.topology)
    chip, tau = of.generation, _TAU
    programs = {program.compiled.name: program for program in report.programs}
    times = [
        f"{programs[name].milliseconds[chip]:.2f}" if programs[name].compiled.fits else "-"
        for name in _PROGRAMS
    ]
    fitting = [p.speedup[chip][tau] for p in report.programs if p.speedup and p.compiled.fits]
    largest = max(program.compiled.memory.total for program in report.programs)
    return (
        plan.target,
        of.accelerator_type,
        plan.mesh,
        "yes" if report.fits else "no",
        f"{largest / GIB:.1f}",
        *times,
        f"{max(fitting):.2f}" if fitting else "-",
    )
