"""Tokens per second of whole calls, each schedule beside plain decoding."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flexdraft_jax.decoding.costs import FIXED_SCHEDULES
from flexdraft_jax.evaluation.decode_details import DecodeDetails, measure_details
from flexdraft_jax.evaluation.methods import Batch, Method, Tokens
from flexdraft_jax.evaluation.programs import forget_programs_if_many
from flexdraft_jax.evaluation.timing import (
    Progress,
    Spread,
    interleave,
    ratios,
    seconds,
    silent,
)

# Prompt and answer -> whether a near-tie decided each token of the answer.
NearTies = Callable[[Sequence[int], Sequence[int]], Sequence[bool]]


@dataclasses.dataclass(frozen=True)
class DecodeRow:
    """Whole calls, prefill included and compilation excluded.

    Attributes:
        domain: of the prompts.
        batch_size: B.
        method: a schedule, or the name of another implementation.
        block_size: n; 1 where nothing is drafted.
        tokens_per_second: of the whole batch.
        speedup: over "ar" at the same batch size.
        tau: mean acceptance length over steps; None where no steps are counted.
        num_equal: prompts answered token for token like "ar"; None where a method draws random
            tokens of its own.
        num_prompts: of how many.
        beside_best: of "flex", its speed beside that of the best fixed schedule; None of others,
            and where no other schedule was measured.
        temperature: of the prompts' rows; 0 is greedy.
        tau_prompts: mean over prompts of each prompt's mean; None where no steps are counted.
        compile_seconds: of the first call beyond the median of the others. Programs are shared, so
            it is about 0 where an earlier row had the same. None where nothing is compiled.
        near_ties: share of the tokens of "ar" that a near-tie decided; None where nobody asked.
        num_split_at_ties: prompts answered differently that part from "ar" at a near-tie; likewise.
        details: what takes calls of its own; likewise.
    """

    domain: str
    batch_size: int
    method: str
    block_size: int
    tokens_per_second: Spread
    speedup: Spread
    tau: float | None
    num_equal: int | None
    num_prompts: int
    beside_best: Spread | None = None
    temperature: float = 0.0
    tau_prompts: float | None = None
    compile_seconds: float | None = None
    near_ties: float | None = None
    num_split_at_ties: int | None = None
    details: DecodeDetails | None = None


def temperature_name(temperature: float) -> str:
    """ ", temperature 1", to go behind prompts; "" where it is greedy."""
    return f", temperature {temperature:g}" if temperature else ""


def measure_decoding(
    methods: Sequence[Method],
    prompts: Sequence[Sequence[int]],
    *,
    domain: str,
    batch_size: int,
    repeats: int = 5,
    temperature: float = 0.0,
    details: bool = False,
    near_ties: NearTies | None = None,
    progress: Progress = silent,
) -> list[DecodeRow]:
    """Decodes all prompts with every method; the methods take turns at each batch.

    Args:
        methods: the first is what the others are compared to.
        prompts: lists of token ids; as many as fill whole batches.
        domain: for the report.
        batch_size: B.
        repeats: of every measurement; one more comes before them, for compilation.
        temperature: that the methods decode with, for the report.
        details: measure what takes calls of its own, too.
        near_ties: prompt and answer -> whether a near-tie decided each token of the answer.
        progress: told about each method.

    Raises:
        ValueError: prompts that don't fill whole batches, or `repeats` under 1.
    """
    if not prompts or len(prompts) % batch_size:
        raise ValueError(f"{len(prompts)} prompts: must be a multiple of batch_size={batch_size}")
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    where = f"{domain}, batch {batch_size}{temperature_name(temperature)}"
    forget_programs_if_many()
    calls = {}
    for method in methods:
        progress(f"{where}, {method.label}: compiling and warming up")
        calls[method.label] = _first_call(method, batches)
    progress(f"{where}: {repeats} repeats")
    times = {method.label: [0.0] * repeats for method in methods}
    for batch in batches:  # So that what is compared is measured close together.
        timers = {method.label: _timer(method, batch) for method in methods}
        for label, values in interleave(timers, repeats).items():
            times[label] = [a + b for a, b in zip(times[label], values, strict=True)]
    more = {}
    if details:
        progress(f"{where}: first tokens, drafts and memory")
        more = measure_details(methods, batches, repeats)
    plain = methods[0].label
    ties = None
    if near_ties is not None:
        answers = zip(prompts, calls[plain].tokens, strict=True)
        ties = [near_ties(prompt, answer) for prompt, answer in answers]
    speeds = {label: [calls[label].num_tokens / t for t in times[label]] for label in calls}
    fixed = [speeds[method.label] for method in methods if method.name in FIXED_SCHEDULES]

    def row(method: Method) -> DecodeRow:
        label = method.label
        call = calls[label]
        beyond = call.seconds - statistics.median(times[label])
        return DecodeRow(
            domain=domain,
            batch_size=batch_size,
            method=method.name,
            block_size=method.block_size,
            tokens_per_second=Spread.of(speeds[label]),
            speedup=ratios(speeds[label], speeds[plain]),
            tau=_mean([a for lengths in call.steps for a in lengths]),
            num_equal=_num_equal(call.tokens, calls[plain].tokens) if method.same_tokens else None,
            num_prompts=len(prompts),
            # Where two are as good, the one that it looks worse beside.
            beside_best=min(
                (ratios(speeds[label], other) for other in fixed if method.name == "flex"),
                key=lambda spread: spread.median,
                default=None,
            ),
            temperature=temperature,
            tau_prompts=_mean([statistics.fmean(lengths) for lengths in call.steps]),
            compile_seconds=max(0.0, beyond) if method.compiles else None,
            near_ties=None if ties is None else _mean([tie for row in ties for tie in row]),
            num_split_at_ties=(
                None if ties is None else _num_split(call.tokens, calls[plain].tokens, ties)
            ),
            details=more.get(label),
        )

    return [row(method) for method in methods]


class _Call(NamedTuple):
    """The first call of a method: new tokens, acceptance lengths of rows with any, and its time."""

    tokens: Tokens
    steps: list[list[int]]
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))


def _first_call(method: Method, batches: Sequence[Batch]) -> _Call:
    begin = time.perf_counter()
    answers = [method.decode(batch) for batch in batches]
    elapsed = time.perf_counter() - begin
    tokens = [row for batch_tokens, _ in answers for row in batch_tokens]
    return _Call(tokens, [row for _, lengths in answers for row in lengths if row], elapsed)


def _timer(method: Method, batch: Batch) -> Callable[[], float]:
    return lambda: seconds(lambda: method.decode(batch))


def _num_equal(tokens: Tokens, plain: Tokens) -> int:
    return sum(a == b for a, b in zip(tokens, plain, strict=True))


def _num_split(tokens: Tokens, plain: Tokens, ties: Sequence[Sequence[bool]]) -> int:
    """How many rows part from the plain ones, and do so where a near-tie decided."""
    count = 0
    for row, plain_row, tie in zip(tokens, plain, ties, strict=True):
        pairs = enumerate(zip(row, plain_row, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), None)
        count += first is not None and tie[first]
    return count


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
