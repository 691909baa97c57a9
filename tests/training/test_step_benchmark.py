"""The benchmark of the step: both steps compute the same, and every number has its place."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from flexdraft_jax.training.step_benchmark import StepBenchmarkSettings, benchmark_step

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
