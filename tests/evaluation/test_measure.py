"""Answers to held-out prompts, and what is counted in them."""

import dataclasses
import json

import pytest

import flexdraft_jax as fd
from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.held_out import HeldOutPrompt, default_prompts
from flexdraft_jax.evaluation.measure import (
    PromptAnswer,
    answer_prompts,
    domain_report,
    evaluate_prompts,
    report_table,
)

BUDGET = 24
# Three prompts in batches of two: the second batch is filled up.
PROMPTS = default_prompts("word_problems")[:3]


def answer(text: str = "", tokens=(1, 2), steps=(1,)) -> PromptAnswer:
    return PromptAnswer(list(tokens), text, list(steps), "stop")


def report_of(prompts, answers, plain=None, references=((1,),)):
    return domain_report(
        prompts,
        answers,
        plain,
        references,
        schedule="sequential",
        block_size=4,
        confidence_threshold=0.0,
    )


@pytest.fixture(scope="module")
def report(models):
    return evaluate_prompts(
        models.target,
        models.draft,
        models.tokenizer,
        PROMPTS,
        max_new_tokens=BUDGET,
        batch_size=2,
        compare=True,
    )


def test_answers_in_filled_batches_are_those_of_generate(models) -> None:
    prompts = [encode_turn(models.tokenizer, p.prompt, None).tokens for p in PROMPTS]
    answers = answer_prompts(
        models.target,
        models.draft,
        models.tokenizer,
        prompts,
        schedule="sequential",
        max_new_tokens=BUDGET,
        batch_size=2,
    )
    out = fd.generate(
        models.target,
        models.draft,
        prompts,
        max_new_tokens=BUDGET,
        schedule="sequential",
        confidence_threshold=0.0,
        stop_token_ids=models.target.eos_token_ids,
    )
    assert [a.tokens for a in answers] == out.tokens
    assert [a.acceptance_lengths for a in answers] == out.acceptance_lengths
    assert [a.finish_reason for a in answers] == out.finish_reasons


def test_report_says_what_was_decoded(report) -> None:
    assert (report.domain, report.schedule) == ("word_problems", "sequential")
    assert (report.block_size, report.confidence_threshold) == (4, 0.0)
    assert report.num_prompts == report.rows_equal == 3
    assert 3 <= report.num_tokens <= 3 * BUDGET
    assert report.accuracy == report.plain_accuracy == 0.0  # random weights
    json.dumps(dataclasses.asdict(report))


def test_table_has_a_line_per_domain(report) -> None:
    table = report_table([report, dataclasses.replace(report, domain="code", accuracy=None)])
    assert [row[0] for row in table.rows] == ["word problems", "code"]
    assert [row[-1] for row in table.rows] == ["3 of 3", "3 of 3"]
    assert table.rows[1][3] == "-"


def test_tau_is_a_mean_over_steps_and_a_mean_over_prompts() -> None:
    report = report_of(PROMPTS[:2], [answer(steps=(4,)), answer(steps=(1, 1, 2))])
    assert report.tau_steps == 2.0
    assert report.tau_prompts == (4 + 4 / 3) / 2
    assert report.num_steps == 4
    assert report.rows_equal is None


def test_repetition_is_seen() -> None:
    looping = answer(tokens=[1] * 40)
    report = report_of(PROMPTS[:1], [looping], references=[list(range(40))])
    assert report.distinct_8grams == 1 / 33
    assert report.reference_distinct_8grams == 1.0


def test_right_answers_are_counted_where_there_is_one_to_check() -> None:
    prompts = [
        HeldOutPrompt("word_problems", "1 + 2?", "The answer is 3.", 3),
        HeldOutPrompt("word_problems", "2 + 2?", "The answer is 4.", 4),
        HeldOutPrompt("word_problems", "?", "No one knows."),
    ]
    answers = [answer("The answer is 3."), answer("The answer is 5."), answer("?")]
    plain = [answer("The answer is 3.", tokens=[7]), *answers[1:]]
    report = report_of(prompts, answers, plain)
    assert report.accuracy == report.plain_accuracy == 0.5
    assert report.rows_equal == 2


def test_domains_are_not_mixed(models) -> None:
    mixed = [*PROMPTS[:1], *default_prompts("code")[:1]]
    with pytest.raises(ValueError, match=r"\['code', 'word_problems'\]: must be of exactly one"):
        evaluate_prompts(models.target, models.draft, models.tokenizer, mixed)


def test_batches_hold_something(models) -> None:
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        answer_prompts(models.target, None, models.tokenizer, [[1]], schedule="ar", batch_size=0)
