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
from flexdraft_jax.decoding.generate import generate
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class Answer:
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

    @property
    def lossless(self) -> bool | None:
        """Whether every answer equals plain decoding; None if that was not run."""
        return None if self.rows_equal is None else self.rows_equal == self.num_prompts


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
    references = [
        tokenizer.encode(prompt.reference, add_special_tokens=False)[:max_new_tokens]
        for prompt in prompts
    ]
    own_size = 1 if draft is None or schedule == "ar" else draft.config.block_size
    return DomainReport(
        domain=domains[0],
        schedule=schedule,
        block_size=block_size or own_size,
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
) -> list[Answer]:
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
    answers: dict[int, Answer] = {}
    for rows in _deal([len(prompt) for prompt in prompts], batch_size):
        out = generate(
            target,
            draft,
            [prompts[row] for row in rows],
            # A row that only fills the batch emits nothing.
            [max_new_tokens if row not in rows[:i] else 0 for i, row in enumerate(rows)],
            schedule=schedule,
            block_size=block_size,
            confidence_threshold=confidence_threshold,
            stop_token_ids=target.eos_token_ids,
        )
        for i, row in enumerate(rows):
            if row not in rows[:i]:
                text = tokenizer.decode(out.tokens[i], skip_special_tokens=True)
                assert isinstance(text, str)  # one sequence in, one text out
                answers[row] = Answer(
                    out.tokens[i], text, out.acceptance_lengths[i], out.finish_reasons[i]
                )
    return [answers[row] for row in range(len(prompts))]


def accuracy(prompts: Sequence[HeldOutPrompt], answers: Sequence[Answer]) -> float | None:
    """Share of the prompts with a known answer that were answered right; None without any."""
    right = [
        parse_answer(answer.text) == prompt.answer
        for prompt, answer in zip(prompts, answers, strict=True)
        if prompt.answer is not None
    ]
    return _mean(right) if right else None


def rows_equal(answers: Sequence[Answer], plain: Sequence[Answer]) -> int:
    """How many answers are equal, token for token."""
    return sum(a.tokens == b.tokens for a, b in zip(answers, plain, strict=True))


def _deal(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Deals rows to batches of one size, so that few programs are compiled.

    Longest first and in turn, so that the longest prompts of all batches fall into one bucket. A
    batch that lacks a row holds its first row again.
    """
    num_batches = -(-len(lengths) // batch_size)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = [order[i::num_batches] for i in range(num_batches)]
    size = max(map(len, batches), default=0)
    return [batch + batch[:1] * (size - len(batch)) for batch in batches]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
