"""The whole benchmark: step costs and tokens per second, as ratios in one run."""

import dataclasses
import os
import platform
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flexdraft_jax.checkpoints.hf import save_target
from flexdraft_jax.config import TargetConfig
from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.evaluation.decode_speed import (
    DecodeRow,
    Method,
    decode_table,
    measure_decoding,
    schedule_method,
    similar_prompts,
)
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.peers import HuggingFace, has_torch
from flexdraft_jax.evaluation.step_costs import StepRow, StepVariant, measure_steps
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import Progress, silent
from flexdraft_jax.models.draft import Draft, init_draft
from flexdraft_jax.models.target import Target, init_target

# Qwen3-shaped targets with random weights: a step costs what its shapes cost.
RANDOM_TARGETS = {
    "1m": TargetConfig(
        model_type="qwen3",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    "10m": TargetConfig(
        model_type="qwen3",
        vocab_size=2048,
        hidden_size=320,
        intermediate_size=800,
        num_layers=8,
        num_heads=5,
        num_kv_heads=5,
        head_dim=64,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
}
_RANDOM_DRAFT_LAYERS = 2
_RANDOM_CALIBRATION_RANK = 64
_RANDOM_PROMPT_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure.

    Attributes:
        schedules: beside "ar", which is always measured: everything is relative to it.
        batch_sizes: rows decoded together; each divides `num_prompts`.
        block_sizes: n that step costs are measured at; decoding takes the first.
        confidence_threshold: of decoding; 0 verifies every draft. Step costs are those of n - 1.
        num_prompts: of each domain.
        max_new_tokens: budget of each.
        num_slots: of the cache that step costs are measured with.
        num_steps: in one call of the compiled loop, for step costs.
        repeats: of every measurement, interleaved.
    """

    schedules: tuple[str, ...] = ("parallel", "sequential")
    batch_sizes: tuple[int, ...] = (1, 8)
    block_sizes: tuple[int, ...] = (8, 4)
    confidence_threshold: float = 0.0
    num_prompts: int = 8
    max_new_tokens: int = 248
    num_slots: int = 256
    num_steps: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        for field in ("num_prompts", "max_new_tokens", "num_steps", "repeats"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        for field in ("batch_sizes", "block_sizes"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty: must name at least one")
        for schedule in self.schedules:
            if schedule not in ("parallel", "sequential"):
                raise ValueError(f"schedules: {schedule!r} must be parallel or sequential")
        for size in self.batch_sizes:
            if size < 1 or self.num_prompts % size:
                raise ValueError(
                    f"batch_sizes: {size} must be at least 1 and divide "
                    f"num_prompts={self.num_prompts}"
                )
        if min(self.block_sizes) < 2:
            raise ValueError(f"block_sizes={self.block_sizes}: must be at least 2 each")

    @property
    def step_variants(self) -> list[StepVariant]:
        """Every schedule at every block size."""
        return [
            StepVariant(schedule, block_size)
            for schedule in self.schedules
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
    """

    model: str
    environment: dict[str, Any]
    settings: BenchmarkSettings
    steps: list[StepRow]
    decoding: list[DecodeRow]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        return [_step_table(self), _decode_table(self)]


def benchmark_models(
    models: Models, settings: BenchmarkSettings, progress: Progress = silent
) -> BenchmarkReport:
    """Step costs, and speed on held-out prompts of both domains.

    Args:
        models: with a draft.
        settings: what to measure.
        progress: told about each part.

    Raises:
        ValueError: no draft, too few prompts, or a bad argument of `generate`.
    """
    target, draft = models.target, models.draft
    if draft is None:
        raise ValueError("draft=None: the benchmark needs one")
    steps = _steps(target, draft, settings, progress)
    block_size = settings.block_sizes[0]
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stop_token_ids": target.eos_token_ids,
    }
    methods = [schedule_method(target, None, "ar", **options)]
    options |= {"block_size": block_size, "confidence_threshold": settings.confidence_threshold}
    methods += [schedule_method(target, draft, name, **options) for name in settings.schedules]

    prompts = similar_prompts(
        models.tokenizer, settings.num_prompts, settings.max_new_tokens, block_size
    )
    decoding = []
    for domain in DOMAINS:
        decoding += _decode(methods, prompts[domain].tokens, domain, settings, progress)
    name = f"{models.name}, {describe_size(target, draft)}"
    return BenchmarkReport(name, environment(), settings, steps, decoding)


def benchmark_random(
    name: str, settings: BenchmarkSettings, progress: Progress = silent
) -> BenchmarkReport:
    """Step costs of a target with random weights, and plain decoding beside Hugging Face.

    Args:
        name: a key of `RANDOM_TARGETS`.
        settings: what to measure.
        progress: told about each part.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RANDOM_TARGETS:
        raise ValueError(f"random target {name!r}: must be one of {', '.join(RANDOM_TARGETS)}")
    target = init_target(RANDOM_TARGETS[name], jax.random.key(0))
    draft = init_draft(
        target,
        num_draft_layers=_RANDOM_DRAFT_LAYERS,
        block_size=settings.block_sizes[0],
        calibration_rank=_RANDOM_CALIBRATION_RANK,
        rng=jax.random.key(1),
    )
    steps = _steps(target, draft, settings, progress)
    methods = [schedule_method(target, None, "ar", max_new_tokens=settings.max_new_tokens)]
    facts = environment()
    if has_torch():
        peer = _hugging_face(target)
        facts["huggingface"] = peer.description
        # Small models can be faster without a second thread; whichever is, it should be seen.
        for threads in dict.fromkeys((peer.num_threads, 1)):
            methods.append(_peer_method(peer, settings.max_new_tokens, threads))
    size = (settings.num_prompts, _RANDOM_PROMPT_TOKENS)
    prompts = np.random.default_rng(0).integers(0, target.config.vocab_size, size).tolist()
    decoding = _decode(methods, prompts, "random tokens", settings, progress)
    label = f"random weights {name}, {describe_size(target, draft)}"
    return BenchmarkReport(label, facts, settings, steps, decoding)


def describe_size(target: Target, draft: Draft | None) -> str:
    """ "5.6 M parameters, draft 0.9 M"."""

    def millions(params: Any) -> str:
        return f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.1f} M"

    drafted = "" if draft is None else f", draft {millions(draft.params)}"
    return f"{millions(target.params)} parameters{drafted}"


def environment() -> dict[str, Any]:
    """What the times depend on."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": device.platform,
        "device": device.device_kind,
        "processors": os.cpu_count(),
        # More than the processors at the start: something else is running, and times suffer.
        "load_average": round(os.getloadavg()[0], 1),
    }


def _steps(
    target: Target, draft: Draft, settings: BenchmarkSettings, progress: Progress
) -> list[StepRow]:
    return measure_steps(
        target,
        draft,
        settings.step_variants,
        batch_sizes=settings.batch_sizes,
        num_slots=settings.num_slots,
        num_steps=settings.num_steps,
        repeats=settings.repeats,
        progress=progress,
    )


def _decode(
    methods: Sequence[Method],
    prompts: Sequence[Sequence[int]],
    domain: str,
    settings: BenchmarkSettings,
    progress: Progress,
) -> list[DecodeRow]:
    rows = []
    for batch_size in settings.batch_sizes:
        rows += measure_decoding(
            methods,
            prompts,
            domain=domain,
            batch_size=batch_size,
            repeats=settings.repeats,
            progress=progress,
        )
    return rows


def _hugging_face(target: Target) -> HuggingFace:
    with tempfile.TemporaryDirectory() as directory:
        save_target(target, directory)
        return HuggingFace(directory)


def _peer_method(peer: HuggingFace, num_tokens: int, num_threads: int) -> Method:
    name = f"huggingface, {num_threads} thread{'s' if num_threads > 1 else ''}"
    return Method(name, 1, lambda prompts: (peer.generate(prompts, num_tokens, num_threads), []))


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
            f"Median (lowest-highest) of {settings.repeats} interleaved repeats of "
            f"{settings.num_steps} steps in one call, cache of {settings.num_slots} slots, every "
            "draft verified. A tau above the last column is a gain."
        ),
    )


def _decode_table(report: BenchmarkReport) -> Table:
    settings = report.settings
    return decode_table(
        report.decoding,
        title=f"Whole calls: {report.model}",
        note=(
            f"{settings.num_prompts} prompts, up to {settings.max_new_tokens} new tokens, "
            f"confidence threshold {settings.confidence_threshold:g}. Median (lowest-highest) of "
            f"{settings.repeats} interleaved repeats, compilation excluded. "
            + ", ".join(f"{name} {value}" for name, value in report.environment.items())
            + "."
        ),
    )
