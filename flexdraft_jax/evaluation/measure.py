"""Held-out prompts decoded with the real decoder, and what that says about a draft.

Accuracy on training labels says little about a draft: wrong masks, templates or positions show
only here.
"""

import dataclasses
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.held_out import HeldOutPrompt, distinct_ngrams
from flexdraft_jax.data.word_problems import parse_answer
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.requests import block_size_of, check_requests
from flexdraft_jax.decoding.sizes import sizes_for
from flexdraft_jax.evaluation.tables import Table, percent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class PromptAnswer:
    """What one prompt was answered.

    Attributes:
        tokens: new token ids, the stop token included.
        text: the same as text, without special tokens.
        acceptance_lengths: a + 1 of each step.
        finish_reason: "stop" or "length".
    """

    tokens: list[int]
    text: str
    acceptance_lengths: list[int]
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class DomainReport:
    """A draft on the held-out prompts of one domain.

    Attributes:
        domain: "word_problems" or "code".
        schedule: that the prompts were decoded with.
        block_size: n; 1 for "ar".
        confidence_threshold: 0 verifies every draft.
        num_prompts: how many there were.
        num_tokens: emitted, all prompts together.
        num_steps: taken, all prompts together. Prefill is none.
        tau_steps: mean acceptance length over steps.
        tau_prompts: mean over prompts of each prompt's mean.
        distinct_8grams: share of distinct 8-grams in the answers. Loops flatter tau; they show
            here.
        reference_distinct_8grams: the same of the reference answers, cut to the same budget.
        accuracy: share of right answers; None where prompts have no answer to check.
        plain_accuracy: the same for plain decoding; None if that was not run.
        rows_equal: prompts answered token for token like plain decoding; None if that was not run.
    """

    domain: str
    schedule: str
    block_size: int
    confidence_threshold: float
    num_prompts: int
    num_tokens: int
    num_steps: int
    tau_steps: float
    tau_prompts: float
    distinct_8grams: float
    reference_distinct_8grams: float
    accuracy: float | None = None
    plain_accuracy: float | None = None
    rows_equal: int | None = None


def evaluate_prompts(
    target: Target,
    draft: Draft | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[HeldOutPrompt],
    *,
    schedule: str = "sequential",
    block_size: int | None = None,
    confidence_threshold: float = 0.0,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    compare: bool = False,
) -> DomainReport:
    """Answers held-out prompts of one domain and counts.

    Args:
        target: the model.
        draft: its draft; may be None for schedule "ar".
        tokenizer: with a chat template.
        prompts: of one domain, at least one.
        schedule: tau does not depend on it; at large batches "sequential" is the fast one.
        block_size: n; the draft's own if None.
        confidence_threshold: 0 verifies every draft: the largest tau that the draft can reach.
        max_new_tokens: budget of each prompt.
        batch_size: prompts decoded together.
        compare: decode plainly too, and count the equal rows.

    Raises:
        ValueError: no prompts, prompts of several domains, or a bad argument of `generate`.
    """
    domains = sorted({prompt.domain for prompt in prompts})
    if len(domains) != 1:
        raise ValueError(f"prompts are of domains {domains}: must be of exactly one")
    encoded = [encode_turn(tokenizer, prompt.prompt, None).tokens for prompt in prompts]
    answers = answer_prompts(
        target,
        draft,
        tokenizer,
        encoded,
        schedule=schedule,
        block_size=block_size,
        confidence_threshold=confidence_threshold,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    plain = None
    if compare:
        plain = answer_prompts(
            target,
            None,
            tokenizer,
            encoded,
            schedule="ar",
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    return domain_report(
        prompts,
        answers,
        plain,
        reference_tokens(tokenizer, prompts, max_new_tokens),
        schedule=schedule,
        block_size=block_size_of(draft, schedule, block_size),
        confidence_threshold=confidence_threshold,
    )


def domain_report(
    prompts: Sequence[HeldOutPrompt],
    answers: Sequence[PromptAnswer],
    plain: Sequence[PromptAnswer] | None,
    references: Sequence[Sequence[int]],
    *,
    schedule: str,
    block_size: int,
    confidence_threshold: float,
) -> DomainReport:
    """Counts.

    Args:
        prompts: of one domain.
        answers: to them.
        plain: the answers of plain decoding, if it was run.
        references: tokens of the reference answers, cut to the same budget.
        schedule: of `answers`.
        block_size: of `answers`.
        confidence_threshold: of `answers`.
    """
    return DomainReport(
        domain=prompts[0].domain,
        schedule=schedule,
        block_size=block_size,
        confidence_threshold=confidence_threshold,
        num_prompts=len(prompts),
        num_tokens=sum(len(answer.tokens) for answer in answers),
        num_steps=sum(len(answer.acceptance_lengths) for answer in answers),
        tau_steps=_mean([a for answer in answers for a in answer.acceptance_lengths]),
        tau_prompts=_mean([_mean(a.acceptance_lengths) for a in answers if a.acceptance_lengths]),
        distinct_8grams=distinct_ngrams([answer.tokens for answer in answers]),
        reference_distinct_8grams=distinct_ngrams(references),
        accuracy=accuracy(prompts, answers),
        plain_accuracy=None if plain is None else accuracy(prompts, plain),
        rows_equal=None if plain is None else rows_equal(answers, plain),
    )


def reference_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[HeldOutPrompt], max_new_tokens: int
) -> list[list[int]]:
    """The reference answers as tokens, cut like answers are."""
    return [
        tokenizer.encode(prompt.reference, add_special_tokens=False)[:max_new_tokens]
        for prompt in prompts
    ]


def answer_prompts(
    target: Target,
    draft: Draft | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    schedule: str,
    block_size: int | None = None,
    confidence_threshold: float = 0.0,
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> list[PromptAnswer]:
    """Decodes any number of prompts in batches of one size; stops at the target's own stop tokens.

    Args:
        target: the model.
        draft: its draft; may be None for schedule "ar".
        tokenizer: to write the answers as text.
        prompts: lists of token ids.
        schedule: as for `generate`.
        block_size: as for `generate`.
        confidence_threshold: as for `generate`.
        max_new_tokens: budget of each prompt.
        batch_size: prompts decoded together.

    Returns:
        One answer per prompt, in order.

    Raises:
        ValueError: `batch_size` under 1, or a bad argument of `generate`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    requests = check_requests(
        target.config, prompts, max_new_tokens, confidence_threshold, target.eos_token_ids
    )
    # One set of sizes for all batches, so that one program serves them.
    sizes = sizes_for(requests, block_size_of(draft, schedule, block_size))
    batch_size = min(batch_size, len(requests))
    answers = []
    for first in range(0, len(requests), batch_size):
        batch = requests[first : first + batch_size]
        # Rows that only fill the batch emit nothing.
        filler = [dataclasses.replace(batch[0], max_new_tokens=0)] * (batch_size - len(batch))
        decoding = start(target, draft, batch + filler, schedule, block_size, sizes=sizes)
        decoding.advance(max_new_tokens)
        out = decoding.output()
        answers += [
            PromptAnswer(
                out.tokens[row],
                decode_text(tokenizer, out.tokens[row]),
                out.acceptance_lengths[row],
                out.finish_reasons[row],
            )
            for row in range(len(batch))
        ]
    return answers


def accuracy(prompts: Sequence[HeldOutPrompt], answers: Sequence[PromptAnswer]) -> float | None:
    """Share of the prompts with a known answer that were answered right; None without any."""
    right = [
        parse_answer(answer.text) == prompt.answer
        for prompt, answer in zip(prompts, answers, strict=True)
        if prompt.answer is not None
    ]
    return _mean(right) if right else None


def mean_tau_of(answers: Sequence[PromptAnswer]) -> float:
    """Tau over the steps of all answers; 1 where none took a step."""
    lengths = [length for answer in answers for length in answer.acceptance_lengths]
    return _mean(lengths) if lengths else 1.0


def rows_equal(answers: Sequence[PromptAnswer], plain: Sequence[PromptAnswer]) -> int:
    """How many answers are equal, token for token."""
    return sum(a.tokens == b.tokens for a, b in zip(answers, plain, strict=True))


def decode_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Tokens as text, without special tokens."""
    text = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)  # one sequence in, one text out
    return text


def report_table(reports: Sequence[DomainReport]) -> Table:
    """One line per domain."""
    first = reports[0]
    threshold = (
        f"drafts under a confidence of {first.confidence_threshold:g} not verified"
        if first.confidence_threshold
        else "every draft verified"
    )
    return Table(
        title="What the drafts are worth",
        columns=(
            "held-out prompts",
            "tau (prompt mean)",
            "distinct 8-grams",
            "right answers",
            "equal to plain",
        ),
        rows=[
            (
                report.domain.replace("_", " "),
                f"{report.tau_steps:.2f} ({report.tau_prompts:.2f})",
                f"{percent(report.distinct_8grams)} "
                f"(reference {percent(report.reference_distinct_8grams)})",
                "-"
                if report.accuracy is None
                else f"{percent(report.accuracy)} (plain {percent(report.plain_accuracy)})",
                "-"
                if report.rows_equal is None
                else f"{report.rows_equal} of {report.num_prompts}",
            )
            for report in reports
        ],
        note=(
            f"{first.num_prompts} prompts each, greedy, {threshold}. tau: tokens per step, at most "
            f"n = {first.block_size}. Loops in a text would flatter it, and would show as few "
            "distinct 8-grams."
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
