"""Whole training runs of drafters: resumed, refused, exported."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import flexdraft_jax as fd
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.draft_loop import train_draft


@pytest.fixture(scope="module")
def target(target_run: tuple[Target, Path]) -> Target:
    return target_run[0]


def test_resume_equals_no_interruption(
    draft_config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    interrupt_after_saving: Callable[[int], AbstractContextManager[None]],
) -> None:
    straight = train_draft(draft_config, target, tokenizer, tmp_path / "straight")
    with interrupt_after_saving(4):
        train_draft(draft_config, target, tokenizer, tmp_path / "resumed")
    resumed = train_draft(draft_config, target, tokenizer, tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("straight", "resumed")]
    assert metrics[0] == metrics[1]
    assert '"tau_word_problems"' in metrics[0]
    exported = fd.load_draft(tmp_path / "resumed" / "export", target)
    rounded = jax.tree.map(
        lambda x: x.astype(draft_config.export_dtype).astype(x.dtype), resumed.params
    )
    jax.tree.map(np.testing.assert_array_equal, exported.params, rounded)


def test_another_target_in_the_same_directory_is_refused(
    draft_config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text('{"target": "0123456789abcdef"}')
    with pytest.raises(ValueError, match="another configuration: .*target: 0123456789abcdef there"):
        train_draft(draft_config, target, tokenizer, tmp_path)
