"""The whole benchmark on a tiny model: every number has its place."""

import dataclasses
import json
from typing import Any

import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding.costs import StepCosts, flex_buckets
from flexdraft_jax.evaluation import benchmark, peer_methods, random_targets
from flexdraft_jax.evaluation.benchmark import (
    benchmark_models,
    benchmark_random,
    describe_size,
)
from flexdraft_jax.evaluation.benchmark_report import BenchmarkReport, BenchmarkSettings
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.peers import has_torch
from flexdraft_jax.evaluation.plots import plot_acceptance, plot_tau, plot_throughput

SETTINGS = BenchmarkSettings(
    schedules=("sequential", "flex"),
    batch_sizes=(2,),
    block_sizes=(4,),
    num_prompts=2,
    max_new_tokens=24,
    repeats=1,
)


def test_both_domains_are_measured_beside_plain_decoding(models) -> None:
    lines: list[str] = []
    parts: list[BenchmarkReport] = []
    report = benchmark_models(models, SETTINGS, lines.append, save=parts.append)
    # Each part is kept when it is done.
    assert [len({row.domain for row in part.decoding}) for part in parts] == [0, 1, 2]
    assert all(part.steps == report.steps for part in parts) and parts[-1] == report
    methods = ["ar", "sequential", "flex"] + ["huggingface"] * has_torch()
    assert [(r.domain, r.method.split(",")[0]) for r in report.decoding] == [
        (domain, method) for domain in ("word_problems", "code") for method in methods
    ]
    assert all(row.num_equal == row.num_prompts == 2 for row in report.decoding)
    assert [row.schedule for row in report.steps] == ["ar", "sequential"]
    assert any("step costs" in line for line in lines)
    # Strict JSON has no NaN.
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["model"].startswith("tiny, ")
    drafting = [row for row in report.decoding if row.tau is not None and row.method != "ar"]
    num_rows = len(report.decoding)
    num_lines = [2, 2, num_rows, len(drafting), num_rows]
    assert [len(table.rows) for table in report.tables()] == num_lines
    assert all(len(row.details.accuracy) == 3 for row in drafting)
    assert all(row.details.first_token.low > 0 for row in report.decoding)
    assert all(row.details.peak_bytes > 0 for row in report.decoding)
    assert all(
        (row.compile_seconds is None) == ("hugging" in row.method) for row in report.decoding
    )
    assert all(len(row) == len(t.columns) for t in report.tables() for row in t.rows)
    assert "step costs of flex estimated" in report.tables()[2].note
    assert report.environment["processor"]


def test_random_weights_need_no_trained_model(models, monkeypatch) -> None:
    monkeypatch.setitem(random_targets.RANDOM_TARGETS, "1m", models.target.config)
    monkeypatch.setattr(random_targets, "_DRAFT_LAYERS", 1)
    lines: list[str] = []
    report = benchmark_random("1m", dataclasses.replace(SETTINGS, batch_sizes=(1, 2)), lines.append)
    assert lines[0].startswith("whole calls of sequential, flex are left out")
    methods = [(row.batch_size, row.method.rsplit(",", 1)[0]) for row in report.decoding]
    peers = [(1, "huggingface"), (1, "huggingface, prompt lookup"), (2, "huggingface")]
    assert set(methods) == {(1, "ar"), (2, "ar"), *peers[: 3 * has_torch()]}
    assert all(row.block_size == 1 for row in report.decoding)
    assert ("prompt lookup of 10 tokens" in report.tables()[-2].note) == has_torch()
    json.dumps(report.to_json(), allow_nan=False)


def test_forced_acceptance_times_the_schedules_of_a_random_target(
    models, monkeypatch, tmp_path
) -> None:
    monkeypatch.setitem(random_targets.RANDOM_TARGETS, "1m", models.target.config)
    monkeypatch.setattr(random_targets, "_DRAFT_LAYERS", 1)
    settings = dataclasses.replace(
        SETTINGS, batch_sizes=(1, 2), forced_acceptance=1.0, peers="none"
    )
    report = benchmark_random("1m", settings)
    rows = [(r.batch_size, r.method, r.num_prompts) for r in report.decoding]
    assert rows == [(b, m, 2) for b in (1, 2) for m in ("ar", "sequential", "flex")]
    assert report.decoding[1].tau == 4.0  # n, with every draft accepted.
    details = report.decoding[1].details
    assert details.acceptance == details.accuracy == (1.0, 1.0, 1.0)
    table = report.tables()[2]
    assert "equal to plain" not in table.columns
    assert table.note.startswith("Each draft accepted by force, probability 1. 2 prompts,")
    for plot in (plot_throughput, plot_acceptance, plot_tau):
        plot(report.decoding, str(tmp_path / "plot.png"))
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "plot.png").unlink()
    with pytest.raises(ValueError, match="no row has drafts"):
        plot_acceptance(report.decoding[:1], str(tmp_path / "plot.png"))
    with pytest.raises(ValueError, match="no row has drafts"):
        plot_tau(report.decoding[:1], str(tmp_path / "plot.png"))


def test_flex_chooses_by_costs_that_were_measured_just_before(models, monkeypatch) -> None:
    monkeypatch.setitem(random_targets.RANDOM_TARGETS, "1m", models.target.config)
    monkeypatch.setattr(random_targets, "_DRAFT_LAYERS", 1)
    measured = []

    def drafting_is_dear(
        *_: Any, block_sizes: Any, batch_sizes: Any, slot_counts: Any, **__: Any
    ) -> list[StepCosts]:
        measured.append((*block_sizes, *batch_sizes, slot_counts))
        n, size, slots = measured[-1]
        dear = dict.fromkeys(flex_buckets(n), 1e6)
        verify = {0: 1.0, **dear}
        return [StepCosts(n, size, s, verify=verify, draft=1e6, parallel=dear) for s in slots]

    monkeypatch.setattr(benchmark, "measure_costs", drafting_is_dear)
    settings = dataclasses.replace(
        SETTINGS,
        parts=("decoding",),
        schedules=("flex",),
        forced_acceptance=1.0,
        measure_costs=True,
        batch_sizes=(1, 2),
        max_new_tokens=96,
        peers="none",
    )
    report = benchmark_random("1m", settings)
    # A prompt of 32 tokens begins with 64 more, and ends with 96.
    assert measured == [(4, 1, [128, 256]), (4, 2, [128, 256])]
    (costs,) = report.flex_costs.values()
    assert [(c.batch_size, c.num_slots) for c in costs] == [(1, 128), (1, 256), (2, 128), (2, 256)]
    written = json.loads(json.dumps(report.to_json()))["flex_costs"]
    assert written["random tokens"][0]["draft"] == 1e6
    table = report.tables()[-1]
    assert table.title.startswith("What flex chose by, random tokens: ") and len(table.rows) == 4
    assert [row.tau for row in report.decoding if row.method == "flex"] == [1.0, 1.0]
    assert "step costs of flex measured in this run" in report.tables()[1].note


def test_random_tokens_are_equal_too_and_tasks_that_are_missing_are_named(
    models, monkeypatch, tmp_path
) -> None:
    lengths = (2000, 9, 400)  # The first does not fit; the others need caches of two sizes.
    lines = [json.dumps({"prompt": "+" * length}) + "\n" for length in lengths]
    (tmp_path / "mbpp.jsonl").write_text("".join(lines))
    (tmp_path / "humaneval.jsonl").write_text("".join(lines[:2]))
    settings = dataclasses.replace(
        SETTINGS,
        parts=("decoding",),
        schedules=("sequential",),
        temperatures=(1.0,),
        tasks=("mbpp", "gsm8k", "humaneval"),
        tasks_dir=str(tmp_path),
        peers="none",
    )
    report = benchmark_models(models, settings)
    assert [(r.domain, r.temperature, r.num_equal) for r in report.decoding] == [
        ("mbpp", 1.0, 2)
    ] * 2
    assert list(report.skipped) == ["gsm8k", "humaneval"] and not report.steps
    note = report.tables()[1].note
    assert "Skipped: gsm8k, no files of gsm8k" in note
    assert "humaneval, num_prompts=2 must be at most 1: of its 2 prompts" in note
    assert "Prompts taken: 2 of 3 (mbpp)." in note
    assert "huggingface skipped (peers=none)" in note
    assert "temperature" in report.tables()[0].columns


def test_random_weights_have_the_dtype_that_was_asked_for() -> None:
    target, draft = random_targets.random_models("1m", 4, "bfloat16")
    assert target.dtype == draft.params["mask_embedding"].dtype == "bfloat16"


def test_unknown_random_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="random target '2t': must be one of 1m, 10m, 100m"):
        benchmark_random("2t", SETTINGS)


@pytest.mark.parametrize("other", [{"schedules": ("parallel",)}, {"parts": ("steps",)}])
def test_costs_that_nobody_would_choose_by_are_not_measured(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="measure_costs=True: needs flex among schedules"):
        dataclasses.replace(SETTINGS, measure_costs=True, **other)
    with pytest.raises(ValueError, match="measure_costs=True: .* forced_acceptance only"):
        benchmark_random("1m", dataclasses.replace(SETTINGS, measure_costs=True))


def test_texts_that_do_not_fit_are_refused_first(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "measure_steps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        benchmark_random("1m", dataclasses.replace(SETTINGS, max_new_tokens=100_000))


def test_a_draft_is_needed(models) -> None:
    with pytest.raises(ValueError, match="draft=None"):
        benchmark_models(Models(models.target, None, models.tokenizer, "tiny"), SETTINGS)


def test_an_assistant_that_would_do_nothing_is_refused(models, monkeypatch) -> None:
    steps = dataclasses.replace(SETTINGS, parts=("steps",))
    with pytest.raises(ValueError, match="assistant='a': .* decoding must be among parts=steps"):
        benchmark_models(models, steps, assistant="a")
    monkeypatch.setattr(peer_methods, "has_torch", lambda: False)
    with pytest.raises(ValueError, match="assistant='a': there is no assisted generation"):
        benchmark_models(models, SETTINGS, assistant="a")
    with pytest.raises(ValueError, match="peers=huggingface: needs decoding among parts=steps"):
        dataclasses.replace(steps, peers="huggingface")


def test_settings_of_random_targets_are_refused_for_others(models) -> None:
    with pytest.raises(ValueError, match="forced_acceptance: must be left out"):
        benchmark_models(models, dataclasses.replace(SETTINGS, forced_acceptance=0.5))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("repeats", 0, "repeats=0: must be at least 1"),
        ("batch_sizes", (3,), "batch_sizes: 3 must divide num_prompts=8"),
        ("batch_sizes", (), "batch_sizes is empty"),
        ("batch_sizes", (0,), r"batch_sizes=\(0,\): must be at least 1 each"),
        ("forced_acceptance", 1.5, "forced_acceptance=1.5: must be from 0 to 1"),
        ("block_sizes", (1,), r"block_sizes=\(1,\): must be at least 2 each"),
        ("parts", (), "parts is empty"),
        ("parts", ("step",), "parts: 'step' must be one of steps, decoding"),
        ("tasks", ("gsm",), "tasks: 'gsm' must be one of word_problems, code, gsm8k, math500"),
        ("temperatures", (0.0, -1.0), "temperatures=.*: must be at least 0 each"),
        ("temperatures", (float("nan"),), "temperatures=.*: must be at least 0 each, and finite"),
        ("batch_sizes", (1, 1), r"batch_sizes=\(1, 1\): must name each once"),
        ("confidence_threshold", 5.0, "confidence_threshold=5.0: must be from 0 to 1"),
        ("peers", "torch", "peers='torch': must be one of auto, none, huggingface"),
        ("schedules", ("ar",), "schedules: 'ar' must be parallel, sequential or flex"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchmarkSettings(**{field: value})


@pytest.mark.parametrize(
    ("name", "millions"),
    [("1m", 1), ("10m", 10), ("100m", 100), ("Qwen3-0.6B", 600), ("Qwen3-4B", 4000)],
)
def test_random_targets_are_as_large_as_their_name(name: str, millions: int) -> None:
    shapes = fd.models.target.target_shapes(random_targets.RANDOM_TARGETS[name])
    text = describe_size(fd.Target(random_targets.RANDOM_TARGETS[name], shapes), None)
    assert float(text.split()[0]) == pytest.approx(millions, rel=0.15)
