"""The demo on a tiny model, and what it concludes from numbers."""

import io

import pytest
from rich.console import Console

from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.demo import DemoReport, DemoSettings, conclusions, run_demo
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.measure import DomainReport
from flexdraft_jax.evaluation.timing import Spread

SETTINGS = DemoSettings(num_prompts=2, num_timed=1, max_new_tokens=24, repeats=1, batch_size=4)


def test_both_domains_are_shown_and_measured(models) -> None:
    console = Console(file=io.StringIO(), width=120)
    report = run_demo(models, console, SETTINGS)
    text = console.file.getvalue()
    assert [r.domain for r in report.domains] == ["word_problems", "code"]
    assert [r.rows_equal for r in report.domains] == [2, 2]
    assert [r.method for r in report.speed] == ["ar", "sequential", "flex"] * 2
    for part in ("tiny", "Word problems", "Code", "accepted drafts", "What the drafts are worth"):
        assert part in text
    assert "Lossless: all 4 answers equal plain decoding, token for token." in text


def report_with(rows_equal: int, speedup: float) -> DemoReport:
    domain = DomainReport(
        domain="code",
        schedule="sequential",
        block_size=4,
        confidence_threshold=0.0,
        num_prompts=2,
        num_tokens=9,
        num_steps=3,
        tau_steps=2.5,
        tau_prompts=2.5,
        distinct_8grams=1.0,
        reference_distinct_8grams=1.0,
        rows_equal=rows_equal,
    )

    def row(method: str, ratio: float) -> DecodeRow:
        return DecodeRow("code", 1, method, 4, Spread(1, 1, 1), Spread(ratio, 1, 2), 2.5, 2, 2)

    rows = [row("ar", 1.0), row("parallel", speedup / 2), row("sequential", speedup)]
    return DemoReport([domain], rows, seconds=7.0)


def test_gains_and_losses_are_both_said() -> None:
    assert conclusions(report_with(2, 1.5)) == [
        "Lossless: all 2 answers equal plain decoding, token for token.",
        "Code: tau 2.50, 1.50 times as fast as plain decoding with the sequential schedule.",
        "7 s in all, compilation included.",
    ]
    lines = conclusions(report_with(1, 0.8))
    assert lines[0] == "NOT lossless: 1 of 2 answers differ from plain ones."
    assert "no gain on this machine, 0.80 of plain decoding's speed at best" in lines[1]


def test_what_it_needs_is_said_before_anything_is_compiled(models) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match="draft=None"):
        run_demo(Models(models.target, None, models.tokenizer, "tiny"), console, SETTINGS)
    with pytest.raises(ValueError, match="num_prompts=500"):
        run_demo(models, console, DemoSettings(num_prompts=500))
    for num_timed in (0, 3):
        with pytest.raises(ValueError, match=f"num_timed={num_timed}: .* 1 to num_prompts=2"):
            DemoSettings(num_prompts=2, num_timed=num_timed)
    assert console.file.getvalue() == ""
