"""Tokens per second of whole calls, each schedule beside plain decoding."""

import dataclasses
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.corpus import DOMAINS, Domain
from flexdraft_jax.data.held_out import HeldOutPrompt, default_prompts
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.decoding.requests import Request, block_size_of, check_requests
from flexdraft_jax.decoding.sizes import Sizes, sizes_for
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import (
    Progress,
    Spread,
    interleave,
    ratios,
    seconds,
    silent,
)
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target

Tokens = list[list[int]]
_FIXED_SCHEDULES = tuple(schedule for schedule in SCHEDULES if schedule != "flex")
_Name = TypeVar("_Name", bound=str)


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
        num_equal: prompts answered token for token like "ar".
        num_prompts: of how many.
        beside_best: of "flex", its speed beside that of the best fixed schedule; None of others,
            and where no other schedule was measured.
    """

    domain: str
    batch_size: int
    method: str
    block_size: int
    tokens_per_second: Spread
    speedup: Spread
    tau: float | None
    num_equal: int
    num_prompts: int
    beside_best: Spread | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        name: for the report.
        block_size: n; 1 where nothing is drafted.
        decode: a batch of prompts -> new tokens and all acceptance lengths.
    """

    name: str
    block_size: int
    decode: Callable[[Sequence[Sequence[int]]], tuple[Tokens, list[list[int]]]]


def schedule_method(
    target: Target,
    draft: Draft | None,
    schedule: str,
    *,
    max_new_tokens: int,
    block_size: int | None = None,
    confidence_threshold: float = 0.0,
    stop_token_ids: Sequence[int] | None = None,
    sampling: str = "coupled",
    attention: str = "reference",
    forced_acceptance: float | None = None,
    **row_sampling: Any,
) -> Method:
    """One of our schedules; the arguments are those of `generate` and `start`."""

    def decode(prompts: Sequence[Sequence[int]]) -> tuple[Tokens, list[list[int]]]:
        requests = check_requests(
            target.config,
            prompts,
            max_new_tokens,
            confidence_threshold,
            stop_token_ids,
            **row_sampling,
        )
        decoding = start(
            target,
            draft,
            requests,
            schedule,
            block_size,
            sampling=sampling,
            attention=attention,
            forced_acceptance=forced_acceptance,
        )
        decoding.advance(max_new_tokens)
        out = decoding.output()
        return out.tokens, out.acceptance_lengths

    return Method(schedule, block_size_of(draft, schedule, block_size), decode)


def measure_decoding(
    methods: Sequence[Method],
    prompts: Sequence[Sequence[int]],
    *,
    domain: str,
    batch_size: int,
    repeats: int = 5,
    progress: Progress = silent,
) -> list[DecodeRow]:
    """Decodes all prompts with every method; the methods take turns.

    Args:
        methods: the first is what the others are compared to.
        prompts: lists of token ids; as many as fill whole batches.
        domain: for the report.
        batch_size: B.
        repeats: of every measurement; one more comes before them, for compilation.
        progress: told about each method.

    Raises:
        ValueError: prompts that don't fill whole batches, or `repeats` under 1.
    """
    if not prompts or len(prompts) % batch_size:
        raise ValueError(f"{len(prompts)} prompts: must be a multiple of batch_size={batch_size}")
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    answers = {}
    for method in methods:
        progress(f"{domain}, batch {batch_size}, {_label(method)}: compiling and warming up")
        answers[_label(method)] = [method.decode(batch) for batch in batches]
    timers = {_label(method): _timer(method, batches) for method in methods}
    progress(f"{domain}, batch {batch_size}: {repeats} repeats")
    times = interleave(timers, repeats)
    plain = _label(methods[0])
    plain_tokens = _all_tokens(answers[plain])
    fixed = [times[_label(method)] for method in methods if method.name in _FIXED_SCHEDULES]
    best = min(fixed, key=statistics.median, default=None)
    rows = []
    for method in methods:
        label = _label(method)
        tokens = _all_tokens(answers[label])
        num_tokens = sum(map(len, tokens))
        steps = [a for _, lengths in answers[label] for row in lengths for a in row]
        rows.append(
            DecodeRow(
                domain=domain,
                batch_size=batch_size,
                method=method.name,
                block_size=method.block_size,
                tokens_per_second=Spread.of([num_tokens / t for t in times[label]]),
                speedup=ratios(times[plain], times[label]),
                tau=sum(steps) / len(steps) if steps else None,
                num_equal=sum(a == b for a, b in zip(tokens, plain_tokens, strict=True)),
                num_prompts=len(prompts),
                beside_best=ratios(best, times[label]) if best and method.name == "flex" else None,
            )
        )
    return rows


def same_bucket(
    domains: Mapping[_Name, Sequence[Sequence[int]]], max_new_tokens: int, block_size: int
) -> dict[_Name, list[int]]:
    """Picks prompts that one compiled program per schedule serves, in all domains.

    Programs are compiled per bucket of lengths. The bucket taken is the one that most prompts of
    every domain are in.

    Args:
        domains: lists of token ids, per domain.
        max_new_tokens: budget of each prompt.
        block_size: n of the schedules that draft.

    Returns:
        Indices of the prompts in the bucket, per domain, in order; empty lists where no bucket
        has prompts of all domains.
    """

    def programs(prompt: Sequence[int]) -> tuple[Sizes, Sizes]:
        row = [Request(tuple(prompt), max_new_tokens)]
        return sizes_for(row, 1), sizes_for(row, block_size)

    members: dict[tuple[Sizes, Sizes], dict[_Name, list[int]]] = defaultdict(
        lambda: {domain: [] for domain in domains}
    )
    for domain, prompts in domains.items():
        for i, prompt in enumerate(prompts):
            members[programs(prompt)][domain].append(i)
    return max(members.values(), key=lambda per_domain: math.prod(map(len, per_domain.values())))


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Held-out prompts of one domain.

    Attributes:
        texts: with their reference answers.
        tokens: the same as turns of a user.
    """

    texts: list[HeldOutPrompt]
    tokens: list[list[int]]


def similar_prompts(
    tokenizer: PreTrainedTokenizerBase, num_prompts: int, max_new_tokens: int, block_size: int
) -> dict[Domain, PromptSet]:
    """The first held-out prompts of every domain in one bucket of lengths, as `same_bucket` picks.

    Raises:
        ValueError: a domain has fewer of them than `num_prompts`.
    """
    texts = {domain: default_prompts(domain) for domain in DOMAINS}
    tokens = {
        domain: [encode_turn(tokenizer, prompt.prompt, None).tokens for prompt in texts[domain]]
        for domain in DOMAINS
    }
    picked = {}
    for domain, rows in same_bucket(tokens, max_new_tokens, block_size).items():
        if len(rows) < num_prompts:
            raise ValueError(
                f"num_prompts={num_prompts}: must be at most {len(rows)}, the {domain} prompts of "
                "similar length"
            )
        chosen = rows[:num_prompts]
        picked[domain] = PromptSet(
            [texts[domain][i] for i in chosen], [tokens[domain][i] for i in chosen]
        )
    return picked


_CELLS: Mapping[str, Callable[[DecodeRow], str]] = {
    "prompts": lambda row: row.domain.replace("_", " "),
    "method": lambda row: "plain decoding" if row.method == "ar" else row.method,
    "batch": lambda row: str(row.batch_size),
    "n": lambda row: str(row.block_size),
    "tau": lambda row: "-" if row.tau is None else f"{row.tau:.2f}",
    "tokens/s": lambda row: f"{row.tokens_per_second:.0f}",
    "speed-up": lambda row: "1" if row.method == "ar" else f"{row.speedup:.2f}",
    "beside the best": lambda row: f"{row.beside_best:.2f}" if row.beside_best else "-",
    "equal to plain": lambda row: f"{row.num_equal} of {row.num_prompts}",
}
DECODE_COLUMNS = tuple(_CELLS)


def decode_table(
    rows: Sequence[DecodeRow], title: str, note: str, columns: Sequence[str] = DECODE_COLUMNS
) -> Table:
    """One line per row.

    Args:
        rows: to show.
        title: of the table.
        note: below the table.
        columns: which of `DECODE_COLUMNS` to show.
    """
    cells = [tuple(_CELLS[column](row) for column in columns) for row in rows]
    return Table(title, tuple(columns), cells, note)


def plot_throughput(rows: Sequence[DecodeRow], path: str) -> None:
    """Draws tokens per second by batch size, a line for each method, side by side per domain.

    Args:
        rows: to draw, with their lowest and highest repeats.
        path: of the picture; its ending names the format.
    """
    domains = list(dict.fromkeys(row.domain for row in rows))
    # A peer takes the threads that suit each batch size; it is one line all the same.
    names = list(dict.fromkeys(_without_threads(row.method) for row in rows))
    figure = Figure(figsize=(1 + 5 * len(domains), 4.6), layout="constrained")
    for place, domain in enumerate(domains, 1):
        axes = figure.add_subplot(1, len(domains), place, title=domain.replace("_", " "))
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="tokens/s")
        of_domain = [row for row in rows if row.domain == domain]
        sizes = sorted({row.batch_size for row in of_domain})
        for name in names:
            line = [row for row in of_domain if _without_threads(row.method) == name]
            speed = [row.tokens_per_second for row in line]
            spread = [[s.median - s.low for s in speed], [s.high - s.median for s in speed]]
            axes.errorbar(
                [row.batch_size for row in line],
                [s.median for s in speed],
                spread,
                marker="o",
                capsize=3,
                label=name if place == 1 else None,
            )
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=120)


def _without_threads(method: str) -> str:
    """ "huggingface, 2 threads" -> "huggingface"."""
    return re.sub(r", \d+ threads?$", "", method)


def _label(method: Method) -> str:
    return f"{method.name}, n={method.block_size}"


def _timer(method: Method, batches: Sequence[Sequence[Sequence[int]]]) -> Callable[[], float]:
    return lambda: seconds(lambda: [method.decode(batch) for batch in batches])


def _all_tokens(answers: Sequence[tuple[Tokens, list[list[int]]]]) -> Tokens:
    return [row for tokens, _ in answers for row in tokens]
