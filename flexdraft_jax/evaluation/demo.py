"""FlexDraft shown in a terminal: text with its accepted drafts, tau, and honest speed."""

import dataclasses
import time
from typing import Any

from rich.console import Console

from flexdraft_jax.data.corpus import DOMAINS, Domain
from flexdraft_jax.data.held_out import HeldOutPrompt
from flexdraft_jax.data.word_problems import parse_answer
from flexdraft_jax.evaluation.benchmark import describe_size
from flexdraft_jax.evaluation.decode_speed import DecodeRow, measure_decoding
from flexdraft_jax.evaluation.decode_tables import decode_table
from flexdraft_jax.evaluation.generation import GenerationSettings, StreamedAnswer, answer_live
from flexdraft_jax.evaluation.highlight import Highlighter, printable
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.measure import (
    DomainReport,
    decode_text,
    evaluate_prompts,
    report_table,
)
from flexdraft_jax.evaluation.methods import schedule_method
from flexdraft_jax.evaluation.prompt_sets import PromptSet, similar_prompts
from flexdraft_jax.evaluation.tables import Table


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """How much to show. The defaults end within three minutes on two processors.

    Attributes:
        num_prompts: per domain, for tau.
        num_timed: per domain, for speed; the first of the same prompts.
        max_new_tokens: budget of each.
        repeats: of every timing, interleaved.
        batch_size: rows decoded together for tau.
        confidence_threshold: drafts less sure than this are not verified; 0 verifies all.
    """

    num_prompts: int = 16
    num_timed: int = 4
    max_new_tokens: int = 248
    repeats: int = 3
    batch_size: int = 32
    confidence_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_timed <= self.num_prompts:
            raise ValueError(
                f"num_timed={self.num_timed}: must be from 1 to num_prompts={self.num_prompts}"
            )


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """What the demo measured.

    Attributes:
        domains: tau, repetition and right answers.
        speed: whole calls at batch 1.
        seconds: from start to end, compilation included.
    """

    domains: list[DomainReport]
    speed: list[DecodeRow]
    seconds: float


# It drafts at every step, so that every step shows what the drafts are worth.
_SHOWN_SCHEDULE = "sequential"


def run_demo(models: Models, console: Console, settings: DemoSettings) -> DemoReport:
    """Streams one held-out prompt per domain, then measures and prints two small tables.

    Args:
        models: with a draft.
        console: to print to.
        settings: how much.

    Raises:
        ValueError: no draft, or fewer prompts than asked for.
    """
    if models.draft is None:
        raise ValueError("draft=None: the demo needs one")
    start = time.perf_counter()
    block_size = models.draft.config.block_size
    prompts = similar_prompts(
        models.tokenizer, settings.num_prompts, settings.max_new_tokens, block_size
    )
    _introduce(models, console, block_size)

    decoding = GenerationSettings(
        settings.max_new_tokens,
        schedule=_SHOWN_SCHEDULE,
        confidence_threshold=settings.confidence_threshold,
    )
    for domain in DOMAINS:
        _show_answer(models, console, prompts[domain], decoding)

    _say(console, "Answering more prompts, and the same ones plainly ...")
    domains = [
        evaluate_prompts(
            models.target,
            models.draft,
            models.tokenizer,
            prompts[domain].texts,
            schedule=_SHOWN_SCHEDULE,
            confidence_threshold=settings.confidence_threshold,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            compare=True,
        )
        for domain in DOMAINS
    ]
    console.print()
    console.print(report_table(domains).to_rich())
    _say(console, "Timing the schedules in turn ...")
    speed = _measure_speed(models, prompts, settings)
    console.print()
    console.print(_speed_table(speed, settings).to_rich())

    report = DemoReport(domains, speed, time.perf_counter() - start)
    for line in conclusions(report):
        console.print(line)
    return report


def conclusions(report: DemoReport) -> list[str]:
    """What the numbers say, in sentences."""
    lines = []
    equal = sum(r.rows_equal or 0 for r in report.domains)
    total = sum(r.num_prompts for r in report.domains)
    if equal == total:
        lines.append(f"Lossless: all {total} answers equal plain decoding, token for token.")
    else:
        lines.append(f"NOT lossless: {total - equal} of {total} answers differ from plain ones.")
    for domain in report.domains:
        rows = [r for r in report.speed if r.domain == domain.domain and r.method != "ar"]
        if not rows:
            continue
        best = max(rows, key=lambda row: row.speedup.median)
        gain = best.speedup.median
        verdict = (
            f"{gain:.2f} times as fast as plain decoding with the {best.method} schedule"
            if gain > 1
            else f"no gain on this machine, {gain:.2f} of plain decoding's speed at best"
        )
        lines.append(f"{_title(domain.domain)}: tau {domain.tau_steps:.2f}, {verdict}.")
    lines.append(f"{report.seconds:.0f} s in all, compilation included.")
    return lines


def _introduce(models: Models, console: Console, block_size: int) -> None:
    console.rule(f"FlexDraft: {models.name}", align="left")
    console.print(
        f"{describe_size(models.target, models.draft)}; drafts {block_size - 1} tokens a step, "
        "which the target then verifies."
    )
    console.print(Highlighter(console).legend())
    _say(console, "Compiling ...")


def _show_answer(
    models: Models, console: Console, prompts: PromptSet, decoding: GenerationSettings
) -> None:
    prompt = prompts.texts[0]
    console.print()
    console.rule(_title(prompt.domain), align="left")
    console.print(printable(prompt.prompt), style="dim", markup=False, highlight=False)
    console.print()
    highlighter = Highlighter(console)
    answer = answer_live(models, prompts.tokens[0], decoding, highlighter.write)
    highlighter.close()
    console.print()
    console.print(_facts(models, prompt, answer), markup=False)


def _facts(models: Models, prompt: HeldOutPrompt, answer: StreamedAnswer) -> str:
    """One line below a streamed answer."""
    facts = answer.describe()
    if prompt.answer is not None:
        text = decode_text(models.tokenizer, answer.output.tokens[0])
        right = parse_answer(text) == prompt.answer
        facts += "; the answer is right" if right else f"; wrong, it is {prompt.answer}"
    return facts + "."


def _measure_speed(
    models: Models, prompts: dict[Domain, PromptSet], settings: DemoSettings
) -> list[DecodeRow]:
    arguments: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "confidence_threshold": settings.confidence_threshold,
        "stop_token_ids": models.target.eos_token_ids,
    }
    methods = [
        schedule_method(models.target, None if name == "ar" else models.draft, name, **arguments)
        for name in ("ar", "sequential", "flex")
    ]
    rows = []
    for domain in DOMAINS:
        rows += measure_decoding(
            methods,
            prompts[domain].tokens[: settings.num_timed],
            domain=domain,
            batch_size=1,
            repeats=settings.repeats,
        )
    return rows


def _speed_table(rows: list[DecodeRow], settings: DemoSettings) -> Table:
    return decode_table(
        rows,
        title="Speed, one prompt at a time",
        columns=("prompts", "method", "tokens/s", "speed-up"),
        note=f"{settings.num_timed} prompts a domain, whole calls, compilation excluded. Median "
        f"(lowest-highest) of {settings.repeats} interleaved repeats.",
    )


def _say(console: Console, line: str) -> None:
    console.print(f"\n{line}", style="dim", markup=False)


def _title(domain: str) -> str:
    return domain.replace("_", " ").capitalize()
