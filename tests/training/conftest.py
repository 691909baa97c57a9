"""Tiny configurations, and one tiny target that several tests share."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.models.target import Target
from flexdraft_jax.training import loop
from flexdraft_jax.training.config import TrainDraftConfig, TrainTargetConfig
from flexdraft_jax.training.config_files import load_config
from flexdraft_jax.training.target_loop import train_target

_CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def target_config() -> TrainTargetConfig:
    """The shipped tiny target, with fewer steps."""
    overrides = ["train.steps=6", "loop.eval_every=3", "loop.checkpoint_seconds=0"]
    return load_config(_CONFIGS / "tiny_target.py", TrainTargetConfig, overrides)


@pytest.fixture(scope="session")
def draft_config() -> TrainDraftConfig:
    """The shipped tiny drafter, with fewer steps."""
    overrides = ["train.steps=6", "loop.checkpoint_seconds=0"]
    return load_config(_CONFIGS / "tiny_draft.py", TrainDraftConfig, overrides)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The byte-level tokenizer."""
    return build_byte_tokenizer()


@pytest.fixture(scope="session")
def target_run(
    target_config: TrainTargetConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Target, Path]:
    """A trained tiny target and the working directory of its run, never interrupted."""
    work_dir = tmp_path_factory.mktemp("target")
    return train_target(target_config, work_dir), work_dir


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy run beside this file, which is also a program."""
    spec = importlib.util.spec_from_file_location("toy_run", Path(__file__).with_name("toy_run.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Interrupted(Exception):
    """What stands for a crash."""


@pytest.fixture
def interrupt_after_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], AbstractContextManager[None]]:
    """A context whose training run crashes right after it began to save the given step."""

    @contextmanager
    def interruption(step: int) -> Iterator[None]:
        save = loop.TrainCheckpoints.save

        def save_and_crash(checkpoints: loop.TrainCheckpoints, at: int, *rest: object) -> None:
            save(checkpoints, at, *rest)
            if at == step:
                raise _Interrupted

        with monkeypatch.context() as patch, pytest.raises(_Interrupted):
            patch.setattr(loop.TrainCheckpoints, "save", save_and_crash)
            yield

    return interruption
