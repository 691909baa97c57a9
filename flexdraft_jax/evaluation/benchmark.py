"""The whole benchmark: step costs and tokens per second, as ratios in one run."""

import dataclasses
import functools
import itertools
import os
import platform
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.checkpoints.hf import save_target
from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.decoding.costs import find_profile
from flexdraft_jax.evaluation.decode_speed import (
    DECODE_COLUMNS,
    DecodeRow,
    Method,
    decode_table,
    measure_decoding,
    schedule_method,
    similar_prompts,
)
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.peers import HuggingFace, has_torch
from flexdraft_jax.evaluation.random_targets import random_models
from flexdraft_jax.evaluation.step_costs import StepRow, StepVariant, measure_steps
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import Progress, silent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import describe_mesh, mesh_of

_RANDOM_PROMPT_TOKENS = 32
# Tokens that Hugging Face's prompt lookup drafts: the default of its candidate generator.
_PROMPT_LOOKUP = 10


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure.

    Attributes:
        schedules: beside "ar", which is always measured: everything is relative to it.
        batch_sizes: rows decoded together.
        block_sizes: n that step costs are measured at; decoding takes the first.
        confidence_threshold: of decoding; 0 verifies every draft. Step costs are those of n - 1.
        num_prompts: of each domain, in whole batches; a batch that is larger repeats them. A random
            target always has one batch.
        max_new_tokens: budget of each.
        num_slots: of the cache that step costs are measured with.
        num_steps: in one call of the compiled loop, for step costs.
        repeats: of every measurement, interleaved.
        forced_acceptance: of random targets: each draft is accepted with this probability,
            whatever the models say. Their drafts are worth nothing otherwise, and then only plain
            decoding is measured in whole calls.
    """

    schedules: tuple[str, ...] = ("parallel", "sequential", "flex")
    batch_sizes: tuple[int, ...] = (1, 8)
    block_sizes: tuple[int, ...] = (8, 4)
    confidence_threshold: float = 0.0
    num_prompts: int = 8
    max_new_tokens: int = 248
    num_slots: int = 256
    num_steps: int = 64
    repeats: int = 5
    forced_acceptance: float | None = None

    def __post_init__(self) -> None:
        for field in ("num_prompts", "max_new_tokens", "num_steps", "repeats"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        for field in ("batch_sizes", "block_sizes"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty: must name at least one")
        for schedule in self.schedules:
            if schedule not in ("parallel", "sequential", "flex"):
                raise ValueError(f"schedules: {schedule!r} must be parallel, sequential or flex")
        for field, smallest in (("batch_sizes", 1), ("block_sizes", 2)):
            if min(getattr(self, field)) < smallest:
                raise ValueError(
                    f"{field}={getattr(self, field)}: must be at least {smallest} each"
                )
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
    """Step costs, and speed on held-out prompts of both domains, beside Hugging Face's.

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
    if settings.forced_acceptance is not None:
        raise ValueError("forced_acceptance: must be left out, it is for random targets")
    for size in settings.batch_sizes:
        if max(size, settings.num_prompts) % size:
            raise ValueError(f"batch_sizes: {size} must divide num_prompts={settings.num_prompts}")
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
    peer = _hugging_face(target)
    decoding = []
    for domain, size in itertools.product(DOMAINS, settings.batch_sizes):
        count = max(settings.num_prompts, size)
        tokens = list(itertools.islice(itertools.cycle(prompts[domain].tokens), count))
        peers = _peer_methods(peer, tokens[:size], settings.max_new_tokens, target.eos_token_ids)
        decoding += _decode(methods + peers, tokens, domain, size, settings, progress)
    name = f"{models.name}, {describe_size(target, draft)}"
    return BenchmarkReport(name, _facts(target, draft, settings, peer), settings, steps, decoding)


def benchmark_random(
    name: str,
    settings: BenchmarkSettings,
    progress: Progress = silent,
    dtype: DTypeLike = "float32",
    mesh: Mesh | None = None,
) -> BenchmarkReport:
    """Step costs of a target with random weights, and plain decoding beside Hugging Face.

    With a forced acceptance the schedules are there too.

    Args:
        name: a key of `RANDOM_TARGETS`.
        settings: what to measure.
        progress: told about each part.
        dtype: of the weights.
        mesh: as for `random_models`.

    Raises:
        ValueError: an unknown name, or weights that do not divide among the mesh's devices.
    """
    target, draft = random_models(name, settings.block_sizes[0], dtype, mesh)
    steps = _steps(target, draft, settings, progress)
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens}
    methods = [schedule_method(target, None, "ar", **options)]
    if settings.forced_acceptance is not None:
        options |= {
            "confidence_threshold": settings.confidence_threshold,
            "forced_acceptance": settings.forced_acceptance,
        }
        methods += [schedule_method(target, draft, name, **options) for name in settings.schedules]
    peer = _hugging_face(target)
    shape = (max(settings.batch_sizes), _RANDOM_PROMPT_TOKENS)
    prompts = np.random.default_rng(0).integers(0, target.config.vocab_size, shape).tolist()
    decoding = []
    for size in settings.batch_sizes:
        rows = prompts[:size]
        peers = _peer_methods(peer, rows, settings.max_new_tokens, None)
        decoding += _decode(methods + peers, rows, "random tokens", size, settings, progress)
    label = f"random weights {name}, {describe_size(target, draft)}"
    return BenchmarkReport(label, _facts(target, draft, settings, peer), settings, steps, decoding)


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


def _facts(
    target: Target, draft: Draft, settings: BenchmarkSettings, peer: HuggingFace | None
) -> dict[str, Any]:
    """The environment, whether flex knows what steps cost there, and what it is compared with."""
    n = settings.block_sizes[0]
    profile = find_profile(target.config, draft.config, target.dtype, None, n)
    measured = profile is not None and profile.nearest(n, 1, 1) is not None
    facts = environment() | {"step costs of flex": "measured" if measured else "estimated"}
    mesh = mesh_of(target.params)
    if mesh is not None:
        facts["mesh"] = describe_mesh(mesh)
    if peer is not None:
        lookup = f"prompt lookup of {_PROMPT_LOOKUP} tokens, which it has for batch 1 alone"
        facts["huggingface"] = f"{peer.description}, {lookup}"
    return facts


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
    batch_size: int,
    settings: BenchmarkSettings,
    progress: Progress,
) -> list[DecodeRow]:
    return measure_decoding(
        methods,
        prompts,
        domain=domain,
        batch_size=batch_size,
        repeats=settings.repeats,
        progress=progress,
    )


def _hugging_face(target: Target) -> HuggingFace | None:
    """The same weights in PyTorch, where it is installed."""
    if not has_torch():
        return None
    with tempfile.TemporaryDirectory() as directory:
        save_target(target, directory)
        return HuggingFace(directory)


def _peer_methods(
    peer: HuggingFace | None,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    stop_token_ids: Sequence[int] | None,
) -> list[Method]:
    """Plain decoding, and prompt lookup where the batch is one row.

    Args:
        peer: None has no methods.
        prompts: one batch, to choose the number of threads by.
        num_tokens: of each prompt, at most.
        stop_token_ids: tokens that end a row.
    """
    if peer is None:
        return []
    lookups = (None, _PROMPT_LOOKUP) if len(prompts) == 1 else (None,)
    return [_peer_method(peer, prompts, num_tokens, stop_token_ids, lookup) for lookup in lookups]


def _peer_method(
    peer: HuggingFace,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    stop_token_ids: Sequence[int] | None,
    prompt_lookup: int | None,
) -> Method:
    threads = peer.fastest_threads(prompts, prompt_lookup)
    lookup = "" if prompt_lookup is None else ", prompt lookup"
    generate = functools.partial(
        peer.generate,
        num_tokens=num_tokens,
        num_threads=threads,
        prompt_lookup=prompt_lookup,
        stop_token_ids=stop_token_ids,
    )
    name = f"huggingface{lookup}, {threads} thread{'s' if threads > 1 else ''}"
    return Method(name, 1, lambda batch: (generate(batch), []))


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
    forced = settings.forced_acceptance
    fewest, most = (f({row.num_prompts for row in report.decoding}) for f in (min, max))
    prompts = f"{fewest}" if fewest == most else f"{fewest}-{most}"
    # Forced tokens mean nothing.
    columns = [name for name in DECODE_COLUMNS if forced is None or name != "equal to plain"]
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
            + ", ".join(f"{name} {value}" for name, value in report.environment.items())
            + "."
        ),
    )
