"""What the benchmark is asked for, and what it tells."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.decoding.costs import StepCosts
from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.decode_tables import decode_table, prompts_name, speedup_table
from flexdraft_jax.evaluation.peer_methods import PEERS
from flexdraft_jax.evaluation.prompt_sets import KNOWN_TASKS
from flexdraft_jax.evaluation.step_costs import STEP_SLOTS, StepRow, StepVariant, costs_table
from flexdraft_jax.evaluation.tables import Table

PARTS = ("steps", "decoding")


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure.

    Attributes:
        schedules: beside "ar", which is always measured: everything is relative to it.
        batch_sizes: rows decoded together.
        block_sizes: n that step costs are measured at; decoding takes the first.
        confidence_threshold: of decoding; 0 verifies every draft. Step costs are those of n - 1.
        num_prompts: of each task, in whole batches; a batch that is larger repeats them, or has
            others, of a random target.
        max_new_tokens: budget of each.
        repeats: of every measurement, interleaved.
        forced_acceptance: of random targets: each draft is accepted with this probability,
            whatever the models say. Their drafts are worth nothing otherwise, and then only plain
            decoding is measured in whole calls.
        measure_costs: before each batch size of each task and temperature, measure what flex
            chooses by. If not, it takes the profile that is in the usual place, or estimates.
        parts: of `PARTS`: the cost of single steps, whole calls, or both.
        temperatures: of whole calls; 0 is greedy.
        tasks: that prompts are of, from `KNOWN_TASKS`. A random target has tokens of its own.
        tasks_dir: local files of public benchmarks, as for `load_task`.
        peers: of `PEERS`: whether Hugging Face decodes the same weights, too, which it does on the
            CPU in float32 alone. "auto": where that is what the target does.
    """

    schedules: tuple[str, ...] = ("parallel", "sequential", "flex")
    batch_sizes: tuple[int, ...] = (1, 8)
    block_sizes: tuple[int, ...] = (8, 4)
    confidence_threshold: float = 0.0
    num_prompts: int = 8
    max_new_tokens: int = 248
    repeats: int = 5
    forced_acceptance: float | None = None
    measure_costs: bool = False
    parts: tuple[str, ...] = PARTS
    temperatures: tuple[float, ...] = (0.0,)
    tasks: tuple[str, ...] = DOMAINS
    tasks_dir: str | None = None
    peers: str = "auto"

    def __post_init__(self) -> None:
        for field in ("num_prompts", "max_new_tokens", "repeats"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        for field in ("batch_sizes", "block_sizes", "parts", "temperatures", "tasks"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty: must name at least one")
        for schedule in self.schedules:
            if schedule not in ("parallel", "sequential", "flex"):
                raise ValueError(f"schedules: {schedule!r} must be parallel, sequential or flex")
        for field, known in (("parts", PARTS), ("tasks", KNOWN_TASKS)):
            for name in getattr(self, field):
                if name not in known:
                    raise ValueError(f"{field}: {name!r} must be one of {', '.join(known)}")
        for field, smallest in (("batch_sizes", 1), ("block_sizes", 2), ("temperatures", 0)):
            if not all(smallest <= value < math.inf for value in getattr(self, field)):
                raise ValueError(
                    f"{field}={getattr(self, field)}: must be at least {smallest} each, and finite"
                )
        for field in ("batch_sizes", "block_sizes", "temperatures", "tasks", "schedules"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field}={values}: must name each once")
        for size in self.batch_sizes:
            if max(size, self.num_prompts) % size:
                raise ValueError(f"batch_sizes: {size} must divide num_prompts={self.num_prompts}")
        if not 0 <= self.confidence_threshold <= 1:
            raise ValueError(
                f"confidence_threshold={self.confidence_threshold}: must be from 0 to 1"
            )
        if self.measure_costs and ("flex" not in self.schedules or "decoding" not in self.parts):
            raise ValueError(
                "measure_costs=True: needs flex among schedules, and decoding among parts"
            )
        if self.peers not in PEERS:
            raise ValueError(f"peers={self.peers!r}: must be one of {', '.join(PEERS)}")
        if self.peers == "huggingface" and "decoding" not in self.parts:
            parts = ",".join(self.parts)
            raise ValueError(f"peers=huggingface: needs decoding among parts={parts}")
        if not (self.forced_acceptance is None or 0 <= self.forced_acceptance <= 1):
            raise ValueError(f"forced_acceptance={self.forced_acceptance}: must be from 0 to 1")

    @property
    def step_variants(self) -> list[StepVariant]:
        """Every fixed schedule at every block size; a step of flex is one of theirs."""
        return [
            StepVariant(schedule, block_size)
            for schedule in self.schedules
            if schedule != "flex"
            for block_size in sorted(self.block_sizes)
        ]


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """Everything that one run measured.

    Attributes:
        model: its name and size.
        environment: versions, device, processors.
        settings: what was asked for.
        steps: step costs.
        decoding: whole calls.
        skipped: tasks that were left out, and why.
        prompt_digests: of each task; files of one name may hold other prompts elsewhere.
        num_known_prompts: of each task; the settings say how many of them were taken.
        flex_costs: what flex chose by, by the prompts and temperature that it was measured before;
            empty unless it was measured in this run.
    """

    model: str
    environment: dict[str, Any]
    settings: BenchmarkSettings
    steps: list[StepRow]
    decoding: list[DecodeRow]
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    prompt_digests: dict[str, str] = dataclasses.field(default_factory=dict)
    num_known_prompts: dict[str, int] = dataclasses.field(default_factory=dict)
    flex_costs: dict[str, list[StepCosts]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        tables = [_step_table(self)] if self.steps else []
        if any(row.method != "ar" for row in self.decoding):
            tables.append(_speedup_table(self))
        if self.decoding:
            tables.append(_speed_table(self))
        if any(row.details and row.details.acceptance for row in self.decoding):
            tables.append(_draft_table(self))
        if any(row.details for row in self.decoding):
            tables.append(_cost_table(self))
        tables += [
            costs_table(costs, f"What flex chose by, {where}: {self.model}")
            for where, costs in self.flex_costs.items()
        ]
        return tables


def _step_table(report: BenchmarkReport) -> Table:
    settings = report.settings
    return Table(
        title=f"Cost of one step: {report.model}",
        columns=("schedule", "batch", "n", "ms", "in plain steps"),
        rows=[
            (
                row.schedule,
                str(row.batch_size),
                str(row.block_size),
                f"{row.milliseconds:.2f}",
                f"{row.ratio:.2f}",
            )
            for row in report.steps
        ],
        note=(
            f"Median (lowest-highest) of {settings.repeats} interleaved repeats of many steps in "
            f"one call, cache of {STEP_SLOTS} slots, every draft verified. A tau above the last "
            "column is a gain."
        ),
    )


def _speedup_table(report: BenchmarkReport) -> Table:
    return speedup_table(
        report.decoding,
        title=f"Speed-ups: {report.model}",
        note=(
            "Tokens/s of plain decoding, then speed-ups over it: median (lowest-highest) of "
            f"{report.settings.repeats} interleaved repeats, each a ratio within its repeat. The "
            "next table has more of the same calls."
        ),
        temperatures=any(report.settings.temperatures),
    )


def _speed_table(report: BenchmarkReport) -> Table:
    settings = report.settings
    forced = settings.forced_acceptance
    fewest, most = (f({row.num_prompts for row in report.decoding}) for f in (min, max))
    prompts = f"{fewest}" if fewest == most else f"{fewest}-{most}"
    columns = [*_row_columns(report), "tau", "tokens/s", "speed-up", "beside the best"]
    if forced is None:  # Forced tokens mean nothing.
        columns.append("equal to plain")
    return decode_table(
        report.decoding,
        title=f"Whole calls: {report.model}",
        columns=columns,
        note=(
            ("" if forced is None else f"Each draft accepted by force, probability {forced:g}. ")
            + f"{prompts} prompts, up to {settings.max_new_tokens} new tokens, "
            f"confidence threshold {settings.confidence_threshold:g}. Median (lowest-highest) of "
            f"{settings.repeats} interleaved repeats, compilation excluded. Speed-ups and the "
            "column beside the best (fixed schedule) are ratios within each repeat. "
            + _tie_note(report.decoding)
            + ", ".join(f"{name} {value}" for name, value in report.environment.items())
            + "."
            + _taken_note(report)
            + "".join(f" Skipped: {task}, {reason}." for task, reason in report.skipped.items())
        ),
    )


def _taken_note(report: BenchmarkReport) -> str:
    """How many prompts of how many; "" where they are random tokens."""
    taken = ", ".join(
        f"{report.settings.num_prompts:,} of {known:,} ({prompts_name(task)})"
        for task, known in report.num_known_prompts.items()
    )
    return f" Prompts taken: {taken}." if taken else ""


def _tie_note(rows: Sequence[DecodeRow]) -> str:
    """The share of near-ties, by kind of prompts; "" where nobody asked."""
    shares = {row.domain: row.near_ties for row in rows if row.near_ties is not None}
    listed = ", ".join(f"{100 * share:.1f} % ({domain})" for domain, share in shares.items())
    told = "Steps of plain decoding that a near-tie decides, two logits within one rounding step: "
    return f"{told}{listed}. " if listed else ""


def _draft_table(report: BenchmarkReport) -> Table:
    columns = [*_row_columns(report), "tau", "tau (prompt mean)"]
    return decode_table(
        [row for row in report.decoding if row.details and row.details.acceptance],
        title=f"Drafts: {report.model}",
        columns=[*columns, "accepted, by position", "right, by slot"],
        note=(
            "Tau is the mean over steps. In percent, for slots 1 to n - 1: steps that accepted so "
            "many drafts, of those that verified so many; and verified drafts that are the text's "
            "token, each judged alone, without those behind the text's end."
        ),
    )


def _cost_table(report: BenchmarkReport) -> Table:
    return decode_table(
        report.decoding,
        title=f"Waiting and memory: {report.model}",
        columns=[*_row_columns(report), *("first token, ms", "compilation, s", "peak memory, MiB")],
        note=(
            f"To the first token of a batch, median (lowest-highest) of {report.settings.repeats} "
            "interleaved repeats, the prompts read and the first block drafted. Compilation is "
            "about 0 where an earlier row had the same programs. Peak memory is "
            f"{report.environment.get('peak memory', 'unknown')}."
        ),
    )


def _row_columns(report: BenchmarkReport) -> list[str]:
    """What names a row; the temperature where there is another than 0."""
    drawn = any(report.settings.temperatures)
    return ["prompts", "method", "batch", "n", *["temperature"] * drawn]
