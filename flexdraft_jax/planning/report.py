"""What a plan says, for people and for programs. Every time and speed-up in it is a prediction."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from flexdraft_jax.decoding.costs import Variant
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.parallel.devices import Device
from flexdraft_jax.planning.compiling import GIB, Compiled
from flexdraft_jax.planning.decode_plan import DecodeCase, DecodeStep, step_work
from flexdraft_jax.planning.roofline import CHIPS, DecodeWork, crossover, plain_batch
from flexdraft_jax.planning.train_plan import TrainCase, train_work

TAUS = (3, 5, 7)


@dataclass(frozen=True)
class ProgramReport:
    """One program.

    Attributes:
        compiled: what the compiler says.
        batch_size: B.
        flops: of a chip in one step, counted.
        traffic: bytes from and to a chip's memory in one step, counted.
        milliseconds: of one step by chip, at best; empty of flex, whose steps are those of others.
        speedup: by chip and tau, over plain decoding; empty where nothing is drafted.
    """

    compiled: Compiled
    batch_size: int
    flops: float
    traffic: float
    milliseconds: Mapping[str, float]
    speedup: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class PlanReport:
    """A plan.

    Attributes:
        title: what is planned.
        settings: all that it depends on.
        programs: in the order they were compiled in.
        crossover: by chip, the smallest batch from which on sequential steps are faster than
            parallel ones; None where they never are.
    """

    title: str
    settings: Mapping[str, Any]
    programs: Sequence[ProgramReport]
    crossover: Mapping[str, int | None]

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(program.compiled.fits for program in self.programs)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"fits": self.fits, "predictions": True, **dataclasses.asdict(self)}

    def show(self, console: Console, json_path: str | None, markdown_path: str | None) -> None:
        """Prints the tables, and writes them to the files that are named."""
        tables = self.tables()
        for table in tables:
            console.print(table.to_rich())
        console.print(f"fits: {'yes' if self.fits else 'no'}", markup=False)
        if json_path:
            Path(json_path).write_text(json.dumps(self.to_json(), indent=2) + "\n")
        if markdown_path:
            Path(markdown_path).write_text("\n".join(table.to_markdown() for table in tables))

    def tables(self) -> list[Table]:
        """Memory, messages, times, speed-ups."""
        found = [_memory_table(self), _collectives_table(self), _times_table(self)]
        if any(program.speedup for program in self.programs):
            found.append(_speedup_table(self))
        return found


def decode_report(
    title: str,
    settings: Mapping[str, Any],
    case: DecodeCase,
    compiled: Sequence[tuple[DecodeStep, Compiled]],
) -> PlanReport:
    """Puts together what was compiled and what was counted.

    Args:
        title: of the plan.
        settings: to be reported.
        case: what is decoded where.
        compiled: the programs, plain decoding among them.
    """
    works = {}
    for step, program in compiled:
        work = step_work(case, step)
        if program.fits and step.name != "flex":
            messages = program.messages(in_step=True)
            if step.name == "prefill":  # Its loop is the first draft, which is made once.
                messages += program.messages(in_step=False)
            work = work.with_messages(messages)
        works[step.name] = work
    programs = []
    for step, program in compiled:
        work = works[step.name]
        times, speedup = {}, {}
        if step.name != "flex":
            times = {name: work.milliseconds(chip) for name, chip in CHIPS.items()}
        if step.variants[0].drafts and step.name not in ("prefill", "flex"):
            plain = works["ar"]
            speedup = {
                name: {tau: tau * plain.milliseconds(CHIPS[name]) / ms for tau in TAUS}
                for name, ms in times.items()
            }
        programs.append(
            ProgramReport(program, step.batch_size, work.flops, work.traffic, times, speedup)
        )
    crossings = {name: crossover(case.work, chip) for name, chip in CHIPS.items()}
    return PlanReport(title, settings, programs, crossings)


def train_report(
    title: str, settings: Mapping[str, Any], case: TrainCase, compiled: Compiled
) -> PlanReport:
    """Puts together what was compiled and what was counted of a training step."""
    work = train_work(case)
    messages = compiled.messages(in_step=False) + compiled.messages(in_step=True)

    def milliseconds(chip: Device) -> float:
        # Weights travel while others are multiplied: the longest of the three is waited for.
        sent = 1e3 * sum(message.seconds(chip) for message in messages)
        return max(work.milliseconds(chip), sent)

    times = {name: milliseconds(chip) for name, chip in CHIPS.items()}
    program = ProgramReport(
        compiled, case.config.train.batch_size, work.flops, work.traffic, times, {}
    )
    return PlanReport(title, settings, [program], {})


def plot_decode_plan(report: PlanReport, case: DecodeCase, chip_name: str, path: str) -> None:
    """Draws memory by part, and the predicted speed-up at tau 5 by batch size.

    Args:
        report: of the case.
        case: what is decoded where.
        chip_name: of `CHIPS`.
        path: of the picture; its ending names the format.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.add_subplot(1, 2, 1, title="memory of a chip", xlabel="GiB")
    names = [program.compiled.name for program in report.programs]
    left = [0.0] * len(names)
    for part, sizes in _stacked(report).items():
        axes.barh(names, sizes, left=left, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.invert_yaxis()
    axes.legend()
    axes = figure.add_subplot(
        1, 2, 2, title=f"predicted speed-up at tau 5, {chip_name}", xlabel="batch size"
    )
    axes.set(xscale="log", ylabel="times plain decoding")
    batches = [case.work.mesh.rows * 2**i for i in range(10)]
    for schedule in ("parallel", "sequential"):
        speed = [_speedup(case.work, schedule, size, CHIPS[chip_name]) for size in batches]
        axes.plot(batches, speed, marker="o", label=schedule)
    axes.axhline(1, color="grey", lw=1)
    axes.set_xticks(batches, [str(size) for size in batches], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(report.title)
    figure.savefig(path, dpi=120)


def _speedup(work: DecodeWork, schedule: str, batch_size: int, chip: Device) -> float:
    plain = work.step(Variant("ar", 0), plain_batch(batch_size, work.mesh))
    drafted = work.step(Variant(schedule, work.block_size - 1), batch_size)
    return 5 * plain.milliseconds(chip) / drafted.milliseconds(chip)


def _stacked(report: PlanReport) -> dict[str, list[float]]:
    """GiB of each part, one entry for each program."""
    memories = [program.compiled.memory for program in report.programs]
    names = dict.fromkeys(name for memory in memories for name in memory.parts)
    parts = {name: [memory.parts.get(name, 0) / GIB for memory in memories] for name in names}
    known = [sum(sizes) for sizes in zip(*parts.values(), strict=True)]
    rest = [m.total / GIB - size for m, size in zip(memories, known, strict=True)]
    return {**parts, "temporaries, padding": rest}


def _memory_table(report: PlanReport) -> Table:
    names = list(dict.fromkeys(n for p in report.programs for n in p.compiled.memory.parts))

    def line(program: ProgramReport) -> tuple[str, ...]:
        compiled, memory = program.compiled, program.compiled.memory
        return (
            compiled.name,
            "yes" if compiled.fits else "no",
            *(_gib(memory.parts.get(name, 0)) for name in names),
            _gib(memory.temporaries),
            _gib(memory.aliased) if compiled.fits else "-",
            _gib(memory.total),
            f"{compiled.seconds:.0f}",
        )

    limits = {p.compiled.memory.limit for p in report.programs if p.compiled.memory.limit}
    limit = f" A program may use {_gib(max(limits))} GiB." if limits else ""
    return Table(
        title=report.title,
        columns=(
            "GiB of a chip",
            "fits",
            *names,
            "temporaries",
            "aliased",
            "total",
            "compiled in, s",
        ),
        rows=[line(program) for program in report.programs],
        note="Fits, temporaries and total as the TPU's compiler says; aliased are arguments whose "
        f"memory the results take.{limit}",
    )


def _collectives_table(report: PlanReport) -> Table:
    rows = [
        (
            program.compiled.name,
            c.kind,
            "step" if c.in_step and program.compiled.name != "prefill" else "call",
            str(c.group),
            str(c.times),
            _size(c.nbytes),
            _size(c.sent * c.times),
        )
        for program in report.programs
        for c in sorted(program.compiled.collectives, key=lambda c: -c.sent * c.times)
    ]
    return Table(
        title="What chips send each other, read from the compiled programs",
        columns=("", "kind", "in one", "chips", "times", "size", "sent by a chip"),
        rows=rows,
        note="Of flex: one step of each kind, together.",
    )


def _times_table(report: PlanReport) -> Table:
    def line(program: ProgramReport) -> tuple[str, ...]:
        return (
            program.compiled.name,
            str(program.batch_size),
            f"{program.flops / 1e9:.1f}",
            f"{program.traffic / 1e9:.2f}",
            *(f"{program.milliseconds[name]:.2f}" for name in CHIPS),
        )

    return Table(
        title="Predicted: milliseconds of a step at best (roofline; nothing of it is measured)",
        columns=("", "rows", "GFLOP of a chip", "GB from memory", *CHIPS),
        rows=[line(program) for program in report.programs if program.milliseconds],
        note="The same number of chips of each kind. Counted: matrices, cache, messages.",
    )


def _speedup_table(report: PlanReport) -> Table:
    crossings = ", ".join(
        f"{name} {'never' if size is None else size}" for name, size in report.crossover.items()
    )
    return Table(
        title="Predicted: speed-up over plain decoding, by tau",
        columns=("", "tau", *CHIPS),
        rows=[
            (
                program.compiled.name,
                str(tau),
                *(f"{program.speedup[name][tau]:.2f}" for name in CHIPS),
            )
            for program in report.programs
            if program.speedup
            for tau in TAUS
        ],
        note="Flex takes the best of them and of plain steps, step by step. Sequential steps are "
        f"faster than parallel ones from this batch size on: {crossings}.",
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.3f} MB" if num_bytes < 1e8 else f"{num_bytes / 1e9:.2f} GB"
