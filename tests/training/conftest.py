"""Tiny configurations, and one tiny target that several tests share."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import flexdraft_jax as fd
from flexdraft_jax.data.chat import EncodedTurn, build_byte_tokenizer
from flexdraft_jax.data.corpus import conversation_lines
from flexdraft_jax.data.pipeline import pack
from flexdraft_jax.data.prepare import PrepareConfig, prepare
from flexdraft_jax.models.draft import Draft, draft_shapes
from flexdraft_jax.models.target import Params, Target, target_shapes
from flexdraft_jax.training import loop
from flexdraft_jax.training.config import TrainDraftConfig, TrainTargetConfig
from flexdraft_jax.training.config_files import load_config
from flexdraft_jax.training.rows import Rows
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
def prepared(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory):
    """Word problems in packed rows, and four prompts held out."""
    path = tmp_path_factory.mktemp("prepared")
    (path / "lines.jsonl").write_text("".join(conversation_lines(["word_problems"], 40, seed=0)))
    config = PrepareConfig(sequence_length=256, held_out=4)
    return prepare(path / "lines.jsonl", tokenizer, path / "data", config)


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


def random_params(shapes: Params, seed: int) -> Params:
    """Weights of the given shapes; drawn by NumPy, as initialising them in JAX takes seconds."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        # Matrices keep the size of what they multiply; vectors are mostly scales of norms.
        return jnp.asarray(noise / leaf.shape[-2] ** 0.5 if leaf.ndim >= 2 else 1 + 0.1 * noise)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="session")
def step_target() -> Target:
    """All sizes are different, so that a weight can be told by its shape."""
    config = fd.TargetConfig(
        model_type="qwen3",
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        qk_norm=True,
        tie_word_embeddings=True,
    )
    return Target(config, random_params(target_shapes(config), seed=0))


@pytest.fixture(scope="session")
def special_target(step_target: Target, every_feature: dict[str, Any]) -> Target:
    """Like `step_target`, with all that only some families have."""
    changes = {"layer_windows": (None, 7, None), **every_feature}
    config = dataclasses.replace(step_target.config, **changes)
    return Target(config, random_params(target_shapes(config), seed=0))


@pytest.fixture(scope="session")
def step_draft(step_target: Target) -> Draft:
    """A draft near the target's own projections, but not their copy, so that no mistake hides."""
    config = fd.DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8)
    params = random_params(draft_shapes(step_target.config, config), seed=1)
    params["layers_0"] = jax.tree.map(
        lambda own, noise: own + 0.03 * noise,
        step_target.params["layers_2"]["attention"],
        params["layers_0"],
    )
    params["calibration"] = jax.tree.map(lambda x: 0.03 * x, params["calibration"])
    return Draft(config, params)


@pytest.fixture(scope="session")
def step_rows() -> Rows:
    """Two packed rows of several documents each, all tokens random."""
    rng = np.random.default_rng(0)
    turns = []
    for _ in range(6):
        prompt, response = int(rng.integers(3, 8)), int(rng.integers(6, 16))
        tokens = rng.integers(0, 256, prompt + response).tolist()
        turns.append(EncodedTurn(tokens, [False] * prompt + [True] * response))
    packed = pack(turns, 64)
    assert packed.tokens.shape[0] == 2
    return Rows(**packed.arrays())
