"""Training of targets: the loss, the loop, stopping and resuming."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

import flexdraft_jax as fd
from flexdraft_jax.models.target import Target, TargetModel, init_target
from flexdraft_jax.training.config import TrainTargetConfig
from flexdraft_jax.training.optimizer import TrainState, make_optimizer
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.target_loop import make_target_step, next_token_loss, train_target


def _metrics(work_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def _same_bits(left: Target, right: Target) -> bool:
    equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left.params, right.params)
    return jax.tree.all(equal)


def test_loss_counts_wanted_next_tokens_within_documents_only() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 6, 5)).astype(np.float32)
    tokens = rng.integers(0, 5, (1, 6)).astype(np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [0.0] + [-log_p[0, place - 1, tokens[0, place]] for place in range(1, 6)]
    # The first document has predictions of places 1 and 2, the second of place 4.
    for wanted, places in (([0, 1, 2, 3, 4, 5], [1, 2, 4]), ([2, 3, 4, 5], [2, 4])):
        mask = np.isin(np.arange(6), wanted)[None]
        total, count = next_token_loss(logits, tokens, segments, mask)
        assert count == len(places)
        np.testing.assert_allclose(total, sum(losses[place] for place in places), rtol=1e-6)


def test_loss_falls_on_a_repeated_batch(target_config: TrainTargetConfig) -> None:
    config = target_config.model.build(260, (258,))
    params = init_target(config, jax.random.key(0)).params
    optimizer = make_optimizer(dataclasses.replace(target_config.train, steps=40))
    step = make_target_step(TargetModel(config), optimizer, loss_on="all")
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    row = np.arange(64, dtype=np.int32)
    rows = Rows(
        tokens=np.tile(row % 7, (2, 1)),
        positions=np.tile(row, (2, 1)),
        segment_ids=np.ones((2, 64), np.int32),
        response_mask=np.ones((2, 64), bool),
    )
    losses = []
    for _ in range(30):
        state, metrics = step(state, rows)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 5  # About log(260).
    assert losses[-1] < 0.5 * losses[0]


def test_export_is_the_trained_model_with_its_tokenizer(
    target_run: tuple[Target, Path], target_config: TrainTargetConfig
) -> None:
    target, work_dir = target_run
    exported = fd.load_target(work_dir / "export", dtype=target_config.export_dtype)
    rounded = jax.tree.map(lambda leaf: leaf.astype(exported.dtype), target.params)
    assert _same_bits(exported, dataclasses.replace(target, params=rounded))
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "export")
    assert target.eos_token_ids == (tokenizer.eos_token_id,)
    metrics = _metrics(work_dir)
    steps = [line["step"] for line in metrics if "loss" in line]
    assert steps == list(range(1, target_config.train.steps + 1))
    assert "held_out_code" in metrics[-1] and "held_out_word_problems" in metrics[-1]


def test_resume_equals_no_interruption(
    target_run: tuple[Target, Path],
    target_config: TrainTargetConfig,
    tmp_path: Path,
    interrupt_after_saving: Callable[[int], AbstractContextManager[None]],
) -> None:
    target, work_dir = target_run
    with interrupt_after_saving(4):
        train_target(target_config, tmp_path)
    resumed = train_target(target_config, tmp_path)
    assert _same_bits(resumed, target)
    assert _metrics(tmp_path) == _metrics(work_dir)


def test_another_configuration_in_the_same_directory_is_refused(
    target_run: tuple[Target, Path], target_config: TrainTargetConfig
) -> None:
    _, work_dir = target_run
    changed = dataclasses.replace(target_config, seed=5)
    with pytest.raises(ValueError, match="another configuration: seed: 0 there, 5 here"):
        train_target(changed, work_dir)


def test_a_warm_start_takes_weights_of_the_same_shape_only(
    target_run: tuple[Target, Path], target_config: TrainTargetConfig, tmp_path: Path
) -> None:
    _, work_dir = target_run
    export = str(work_dir / "export")
    # At rate 0 what comes out is what went in.
    still = dataclasses.replace(target_config.train, steps=1, learning_rate=0.0)
    warm = dataclasses.replace(target_config, train=still, init_from=export)
    started = train_target(warm, tmp_path / "same")
    assert _same_bits(started, fd.load_target(export))
    wider = dataclasses.replace(target_config.model, intermediate_size=64)
    with pytest.raises(ValueError, match="init_from=.* must be of the shape"):
        train_target(dataclasses.replace(warm, model=wider), tmp_path / "wider")
