"""Whole training runs of drafters: resumed, refused, exported."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import flexdraft_jax as fd
from flexdraft_jax.data.prepared import Prepared
from flexdraft_jax.models.target import Target
from flexdraft_jax.training import export
from flexdraft_jax.training.checkpoints import lock_work_dir
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.draft_loop import check_data, train_draft
from flexdraft_jax.training.export import export_draft


@pytest.fixture(scope="module")
def target(models) -> Target:
    return models.target


@pytest.fixture(scope="module")
def run(
    draft_config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[fd.Draft, Path]:
    """A trained drafter and the working directory of its run, never interrupted."""
    work_dir = tmp_path_factory.mktemp("draft")
    return train_draft(draft_config, target, tokenizer, prepared, work_dir), work_dir


def test_resume_equals_no_interruption(
    run: tuple[fd.Draft, Path],
    draft_config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
    interrupt_after_saving: Callable[[int], AbstractContextManager[None]],
) -> None:
    straight, straight_dir = run
    with interrupt_after_saving(4):
        train_draft(draft_config, target, tokenizer, prepared, tmp_path)
    resumed = train_draft(draft_config, target, tokenizer, prepared, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    metrics = [(path / "metrics.jsonl").read_text() for path in (straight_dir, tmp_path)]
    assert metrics[0] == metrics[1]
    assert '"tau_word_problems"' in metrics[0]


def test_another_target_in_the_same_directory_is_refused(
    draft_config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text('{"target": "0123456789abcdef"}')
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)  # Before that, nothing could be spoilt.
    with pytest.raises(ValueError, match="another configuration: .*target: 0123456789abcdef there"):
        train_draft(draft_config, target, tokenizer, prepared, tmp_path)


def test_one_run_at_a_time_is_in_a_directory(
    draft_config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
) -> None:
    with lock_work_dir(tmp_path):
        with pytest.raises(ValueError, match="work_dir='.*': another run is writing there"):
            train_draft(draft_config, target, tokenizer, prepared, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_data_that_does_not_fit_is_refused(
    target: Target, tokenizer: PreTrainedTokenizerBase, prepared: Prepared
) -> None:
    check_data(prepared, tokenizer, target)
    for change, message in [
        ({"tokenizer_fingerprint": "0"}, "another tokenizer or chat template"),
        ({"held_out": []}, "held_out of at least 1"),
        ({"sequence_length": 5000}, "rows of 5000 tokens: must be at most .*=1024"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_data(dataclasses.replace(prepared, **change), tokenizer, target)


def test_a_warm_start_must_have_the_shape(
    draft_config: TrainDraftConfig,
    models,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
) -> None:
    other = dataclasses.replace(models.draft.config, block_size=6)
    fd.save_draft(dataclasses.replace(models.draft, config=other), models.target, tmp_path / "six")
    config = dataclasses.replace(draft_config, init_from=str(tmp_path / "six"))
    with pytest.raises(ValueError, match="init_from=.*six.* block_size=6.*must be of the shape"):
        train_draft(config, models.target, tokenizer, prepared, tmp_path / "run")


def test_export_is_what_was_trained(
    run: tuple[fd.Draft, Path],
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
) -> None:
    trained, work_dir = run  # Evaluated once, at the end: its last step is its best.
    report = export_draft(work_dir, target, tokenizer, prepared, tmp_path, max_new_tokens=16)
    exported = fd.load_draft(tmp_path, target)
    rounded = jax.tree.map(lambda x: np.asarray(x).astype("bfloat16"), trained.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)),
        exported.params,
        rounded,
    )
    assert report.step == 6 and report.num_prompts == 4 and report.tau >= 1
    card = (tmp_path / "README.md").read_text()
    assert f"| word_problems | {report.metrics['tau_word_problems']:.2f} |" in card


def test_files_that_do_not_decode_as_trained_are_refused(
    run: tuple[fd.Draft, Path],
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = export.load_best

    def boast(*arguments):
        saved = load(*arguments)
        return saved._replace(metrics={**saved.metrics, "tau_word_problems": 100.0})

    monkeypatch.setattr(export, "load_best", boast)
    with pytest.raises(ValueError, match="do not hold what was trained"):
        export_draft(run[1], target, tokenizer, prepared, tmp_path, max_new_tokens=16)


def test_a_directory_without_a_run_is_refused(
    target: Target, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no run of train/train_draft.py"):
        export_draft(tmp_path, target, tokenizer, prepared, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"target": "0"}')
    with pytest.raises(ValueError, match="a run for target 0: must be this target"):
        export_draft(tmp_path, target, tokenizer, prepared, tmp_path / "out")


def test_export_overwrites_drafts_alone(
    run: tuple[fd.Draft, Path],
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tmp_path: Path,
) -> None:
    fd.save_target(target, tmp_path)
    with pytest.raises(ValueError, match="new directory or an earlier export, and holds"):
        export_draft(run[1], target, tokenizer, prepared, tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds the config.json of something else"):
        export_draft(run[1], target, tokenizer, prepared, tmp_path / "notes")
    with pytest.raises(ValueError, match="must be a directory, and is a file"):
        export_draft(run[1], target, tokenizer, prepared, tmp_path / "notes" / "config.json")
