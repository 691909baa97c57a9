"""The benchmark of the step: both steps compute the same, and every number has its place."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.flexdraft import FlexDraft
from flexdraft_jax.models.target import Params, Target, target_shapes
from flexdraft_jax.training import step_benchmark
from flexdraft_jax.training.anchors import sample_groups
from flexdraft_jax.training.config import DraftStepConfig, ObjectiveConfig
from flexdraft_jax.training.draft_step import loss_and_gradients
from flexdraft_jax.training.objectives import SlotScores
from flexdraft_jax.training.plain_step import plain_loss_and_gradients
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.step_benchmark import (
    StepBenchmarkReport,
    StepBenchmarkSettings,
    benchmark_step,
)

_SETTINGS = StepBenchmarkSettings(
    DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8),
    batch_size=2,
    sequence_length=32,
    anchors=8,
    step=DraftStepConfig(chunk=2),
    repeats=2,
)


def test_the_plain_step_computes_the_same(
    step_target: Target, step_draft: Draft, step_rows: Rows
) -> None:
    config = dataclasses.replace(step_target.config, layer_windows=(None, 6, 5))
    model = FlexDraft(config, step_draft.config)
    groups = sample_groups(jax.random.key(3), step_rows, num_anchors=8, block_size=4)
    arguments = (step_target.params, step_draft.params, step_rows, groups)

    @jax.jit
    def both(*args: Any) -> list[tuple[Params, SlotScores]]:
        ours = loss_and_gradients(model, ObjectiveConfig(), DraftStepConfig(), *args)
        return [ours, plain_loss_and_gradients(model, ObjectiveConfig(), *args)]

    ours, plain = both(*arguments)
    np.testing.assert_array_equal(ours[1].right, plain[1].right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)


@pytest.mark.slow
def test_both_steps_are_measured_side_by_side(step_target: Target) -> None:
    config = dataclasses.replace(step_target.config, vocab_size=32_768)
    lines: list[str] = []
    weights = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), target_shapes(config))
    report = benchmark_step(Target(config, weights), _SETTINGS, "tiny", lines.append)
    plain, ours = report.rows
    assert [plain.method, ours.method] == ["plain step", "draft step"]
    assert ours.loss == pytest.approx(plain.loss, rel=1e-5)
    assert plain.speedup.median == plain.memory == 1
    assert ours.memory == ours.peak_bytes / plain.peak_bytes
    assert ours.memory < 0.5, "with a large vocabulary"
    assert ours.tokens_per_second == pytest.approx(2 * 32 / (1e-3 * ours.milliseconds.median))
    assert ours.anchors_per_second == pytest.approx(ours.tokens_per_second * 8 / 32)
    assert any("plain step" in line for line in lines)
    # Strict JSON has no NaN.
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["model"].startswith("tiny, ")
    assert all(len(row) == len(report.table().columns) for row in report.table().rows)


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """train/benchmark_step.py; its flags leave the global table with the test."""
    before = set(flags.FLAGS)
    path = Path(__file__).parents[2] / "train" / "benchmark_step.py"
    spec = importlib.util.spec_from_file_location("script_benchmark_step", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def test_the_script_hands_its_flags_on_and_writes_its_files(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def measure(target: Target, settings: StepBenchmarkSettings, name: str, _: Any) -> Any:
        asked.append((target, settings, name))
        return StepBenchmarkReport(name, {}, settings, [])

    monkeypatch.setattr(script, "benchmark_step", measure)
    sizes = ["--draft_layers=1", "--block_size=4", "--calibration_rank=8", "--batch_size=2"]
    sizes += ["--sequence_length=32", "--anchors=8", "--chunk=2", "--repeats=2"]
    target = ["--random_target=1m", "--vocab_size=64"]
    files = [f"--json={tmp_path / 'step.json'}", f"--markdown={tmp_path / 'step.md'}"]
    script.main(flags.FLAGS(["benchmark_step", *target, *sizes, *files]))
    ((model, settings, name),) = asked
    assert settings == _SETTINGS
    assert (model.config.vocab_size, name) == (64, "random weights 1m")
    assert json.loads((tmp_path / "step.json").read_text())["settings"]["anchors"] == 8
    assert "| speed-up |" in (tmp_path / "step.md").read_text()


def test_a_real_target_has_its_own_vocabulary(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="vocab_size=64: goes with --random_target"):
        script.main(flags.FLAGS(["benchmark_step", "--target=somewhere", "--vocab_size=64"]))


def test_what_is_donated_counts_once() -> None:
    memory = SimpleNamespace(
        argument_size_in_bytes=10,
        output_size_in_bytes=7,
        temp_size_in_bytes=100,
        alias_size_in_bytes=6,
    )
    assert step_benchmark.peak_bytes(memory) == 111


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "repeats=0: must be at least 1"),
        ({"sequence_length": 16}, "sequence_length=16: must be at least 32, for anchors=8 and 4"),
        ({"anchors": 7}, "step.chunk=2: must divide anchors=7, or be 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_SETTINGS, **changes)
