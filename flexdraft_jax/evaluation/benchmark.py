"""The whole benchmark: step costs and tokens per second, as ratios in one run."""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.decoding.costs import Profile, StepCosts, find_profile
from flexdraft_jax.decoding.requests import Request, check_requests
from flexdraft_jax.decoding.sizes import sizes_for
from flexdraft_jax.evaluation.benchmark_report import BenchmarkReport, BenchmarkSettings
from flexdraft_jax.evaluation.decode_speed import NearTies, measure_decoding, temperature_name
from flexdraft_jax.evaluation.decode_tables import prompts_name
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.methods import Method, schedule_method
from flexdraft_jax.evaluation.near_ties import near_ties
from flexdraft_jax.evaluation.peak_memory import peak_source
from flexdraft_jax.evaluation.peer_methods import (
    describe_peer,
    hugging_face,
    peer_methods,
    skipped_peer,
)
from flexdraft_jax.evaluation.prompt_sets import TaskPrompts, task_prompts
from flexdraft_jax.evaluation.random_targets import random_models
from flexdraft_jax.evaluation.step_costs import measure_costs, measure_steps
from flexdraft_jax.evaluation.timing import Progress, silent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import describe_mesh, mesh_of

_RANDOM_PROMPT_TOKENS = 32

# By domain and batch size: token ids, in whole batches.
Prompts = Mapping[str, Mapping[int, Sequence[Sequence[int]]]]


def _nowhere(report: BenchmarkReport) -> None:
    """Saves nothing."""


def benchmark_models(
    models: Models,
    settings: BenchmarkSettings,
    progress: Progress = silent,
    assistant: str | os.PathLike[str] | None = None,
    save: Callable[[BenchmarkReport], None] = _nowhere,
) -> BenchmarkReport:
    """Step costs, and speed on held-out prompts of every task, beside Hugging Face's.

    Args:
        models: with a draft.
        settings: what to measure.
        progress: told about each part.
        assistant: Hugging Face directory of a model that drafts in Hugging Face's assisted
            generation; None leaves it out.
        save: given what is there, behind the step costs and behind each batch size.

    Raises:
        ValueError: no draft, too few prompts, or a bad argument of `generate`.
    """
    target, draft = models.target, models.draft
    if draft is None:
        raise ValueError("draft=None: the benchmark needs one")
    if settings.forced_acceptance is not None:
        raise ValueError("forced_acceptance: must be left out, it is for random targets")
    found: dict[str, TaskPrompts] = {}
    skipped: dict[str, str] = {}
    if "decoding" in settings.parts:
        found, skipped = task_prompts(
            models,
            settings.tasks,
            settings.tasks_dir,
            settings.num_prompts,
            settings.max_new_tokens,
            settings.block_sizes[0],
        )
        for task, reason in skipped.items():
            progress(f"{task}: skipped, {reason}")
    prompts = {task: taken.tokens for task, taken in found.items()}
    empty = BenchmarkReport(
        f"{models.name}, {describe_size(target, draft)}",
        _facts(target, draft, settings),
        settings,
        steps=[],
        decoding=[],
        skipped=skipped,
        prompt_digests={
            task: hashlib.sha256(repr(rows).encode()).hexdigest()[:8]
            for task, rows in prompts.items()
        },
        num_known_prompts={task: taken.num_known for task, taken in found.items()},
    )
    return _benchmark(
        empty,
        target,
        draft,
        _repeated(prompts, settings.batch_sizes),
        settings.schedules,
        stop_token_ids=target.eos_token_ids,
        assistant=assistant,
        progress=progress,
        save=save,
    )


def benchmark_random(
    name: str,
    settings: BenchmarkSettings,
    progress: Progress = silent,
    dtype: DTypeLike = "float32",
    mesh: Mesh | None = None,
    assistant: str | os.PathLike[str] | None = None,
    save: Callable[[BenchmarkReport], None] = _nowhere,
) -> BenchmarkReport:
    """Step costs of a target with random weights, and plain decoding beside Hugging Face.

    With a forced acceptance the schedules are there too.

    Args:
        name: a key of `RANDOM_TARGETS`.
        settings: what to measure.
        progress: told about each part.
        dtype: of the weights.
        mesh: as for `random_models`.
        assistant: as for `benchmark_models`.
        save: likewise.

    Raises:
        ValueError: an unknown name, texts longer than the target's context, weights that do not
            divide among the mesh's devices, or costs to measure for flex without a forced
            acceptance.
    """
    if settings.measure_costs and settings.forced_acceptance is None:
        raise ValueError("measure_costs=True: a random target has flex with forced_acceptance only")
    schedules = () if settings.forced_acceptance is None else settings.schedules
    if schedules != settings.schedules and "decoding" in settings.parts:
        progress(
            f"whole calls of {', '.join(settings.schedules)} are left out: without a forced "
            "acceptance a random target has no drafts that are worth anything"
        )
    target, draft = random_models(name, settings.block_sizes[0], dtype, mesh)
    shape = (max(settings.num_prompts, *settings.batch_sizes), _RANDOM_PROMPT_TOKENS)
    prompts = np.random.default_rng(0).integers(0, target.config.vocab_size, shape).tolist()
    rows = {size: prompts[: max(size, settings.num_prompts)] for size in settings.batch_sizes}
    facts = _facts(target, draft, settings)
    title = f"random weights {name}, {describe_size(target, draft)}"
    return _benchmark(
        BenchmarkReport(title, facts, settings, steps=[], decoding=[]),
        target,
        draft,
        {"random tokens": rows},
        schedules,
        stop_token_ids=None,
        assistant=assistant,
        progress=progress,
        save=save,
    )


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
        "processor": _processor(),
        "processors": os.cpu_count(),
        # More than the processors at the start: something else is running, and times suffer.
        "load_average": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """The CPU's model, as far as the system tells: JAX calls every one `cpu`, however fast."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()  # Linux alone has it.
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _repeated(prompts: Mapping[str, list[list[int]]], batch_sizes: Sequence[int]) -> Prompts:
    """Batches that are larger than the prompts are many repeat them."""
    return {
        task: {
            size: list(itertools.islice(itertools.cycle(rows), max(size, len(rows))))
            for size in batch_sizes
        }
        for task, rows in prompts.items()
    }


def _benchmark(
    report: BenchmarkReport,
    target: Target,
    draft: Draft,
    prompts: Prompts,
    schedules: Sequence[str],
    *,
    stop_token_ids: Sequence[int] | None,
    assistant: str | os.PathLike[str] | None,
    progress: Progress,
    save: Callable[[BenchmarkReport], None],
) -> BenchmarkReport:
    """Fills an empty report: all parts, whole calls with the schedules beside plain decoding."""
    settings = report.settings
    peer = None
    if "decoding" in settings.parts:
        # First, as they may be refused.
        for rows in itertools.chain.from_iterable(sizes.values() for sizes in prompts.values()):
            check_requests(target.config, rows, settings.max_new_tokens, 0.0, stop_token_ids)
        peer = hugging_face(target, assistant, settings.peers)
    elif assistant is not None:
        raise ValueError(
            f"assistant={os.fspath(assistant)!r}: drafts in whole calls, so decoding must be among "
            f"parts={','.join(settings.parts)}"
        )
    if "steps" in settings.parts:
        steps = measure_steps(
            target,
            draft,
            settings.step_variants,
            batch_sizes=settings.batch_sizes,
            repeats=settings.repeats,
            progress=progress,
        )
        report = dataclasses.replace(report, steps=steps)
        save(report)
    if "decoding" in settings.parts:
        reason = skipped_peer(target, settings.peers)
        facts = {"peak memory": peak_source(), "huggingface": describe_peer(peer, reason)}
        report = dataclasses.replace(report, environment=report.environment | facts)
        for temperature, domain in itertools.product(settings.temperatures, prompts):
            for size, rows in prompts[domain].items():
                profile = None
                if settings.measure_costs:
                    costs = _flex_costs(target, draft, settings, rows, size, progress)
                    where = prompts_name(domain) + temperature_name(temperature)
                    before = report.flex_costs.get(where, [])
                    report = dataclasses.replace(
                        report, flex_costs=report.flex_costs | {where: before + costs}
                    )
                    profile = Profile(tuple(costs))
                methods = _methods(
                    target, draft, settings, schedules, stop_token_ids, temperature, profile
                )
                peers = peer_methods(
                    peer,
                    target,
                    rows[:size],
                    settings.max_new_tokens,
                    stop_token_ids,
                    temperature,
                )
                measured = measure_decoding(
                    methods + peers,
                    rows,
                    domain=domain,
                    batch_size=size,
                    repeats=settings.repeats,
                    temperature=temperature,
                    details=True,
                    near_ties=_tie_finder(target, settings, temperature),
                    progress=progress,
                )
                report = dataclasses.replace(report, decoding=report.decoding + measured)
                save(report)
    return report


def _methods(
    target: Target,
    draft: Draft,
    settings: BenchmarkSettings,
    schedules: Sequence[str],
    stop_token_ids: Sequence[int] | None,
    temperature: float,
    profile: Profile | None,
) -> list[Method]:
    """Plain decoding and the schedules."""
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stop_token_ids": stop_token_ids,
        "temperature": temperature,
        "noise_of_prompts": True,
    }
    drafting = options | {
        "block_size": settings.block_sizes[0],
        "confidence_threshold": settings.confidence_threshold,
        "forced_acceptance": settings.forced_acceptance,
        "profile": profile,
    }
    return [
        schedule_method(target, None, "ar", **options),
        *(schedule_method(target, draft, schedule, **drafting) for schedule in schedules),
    ]


def _flex_costs(
    target: Target,
    draft: Draft,
    settings: BenchmarkSettings,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    progress: Progress,
) -> list[StepCosts]:
    """What steps cost just now: that changes with whatever else the machine does.

    With the smallest cache that a batch of these prompts begins with, and the largest that one may
    end with.
    """
    block_size = settings.block_sizes[0]
    requests = [Request(tuple(prompt), settings.max_new_tokens) for prompt in prompts]
    sizes = [
        sizes_for(requests[first : first + batch_size], block_size)
        for first in range(0, len(requests), batch_size)
    ]
    slots = min(s.slots for s in sizes), max(s.max_slots for s in sizes)
    return list(
        measure_costs(
            target,
            draft,
            block_sizes=[block_size],
            batch_sizes=[batch_size],
            slot_counts=list(dict.fromkeys(slots)),
            repeats=settings.repeats,
            progress=progress,
        )
    )


def _tie_finder(target: Target, settings: BenchmarkSettings, temperature: float) -> NearTies | None:
    """Greedy decoding in less than float32 meets near-ties, and parts from plain decoding there."""
    if temperature or settings.forced_acceptance is not None or target.dtype == jnp.float32:
        return None
    return functools.partial(near_ties, target)


def _facts(target: Target, draft: Draft, settings: BenchmarkSettings) -> dict[str, Any]:
    """The environment, and whence flex knows what steps cost there."""
    mesh = mesh_of(target.params)
    costs = "measured in this run"
    if not settings.measure_costs:
        n = settings.block_sizes[0]
        profile = find_profile(target.config, draft.config, target.dtype, None, n, mesh)
        measured = profile is not None and profile.nearest(n, 1, 1) is not None
        costs = "measured" if measured else "estimated"
    facts = environment() | {"dtype": str(target.dtype), "step costs of flex": costs}
    if mesh is not None:
        facts["mesh"] = describe_mesh(mesh)
    return facts
