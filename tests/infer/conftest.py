"""Directories of a tiny model, and scripts run in this process."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from absl import flags

import flexdraft_jax as fd
from flexdraft_jax.data.chat import build_byte_tokenizer

SCRIPTS = Path(__file__).parents[2] / "infer"
CONFIG = fd.TargetConfig(
    model_type="qwen3",
    vocab_size=260,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    qk_norm=True,
    tie_word_embeddings=True,
    max_position_embeddings=1024,
    eos_token_ids=(258,),
)


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    """Holds target/ with a tokenizer, and draft/ with n = 4."""
    path = tmp_path_factory.mktemp("tiny")
    target = fd.init_target(CONFIG, jax.random.key(0))
    # Larger weights than a fresh model has: it writes more than one token for ever.
    target = dataclasses.replace(target, params=jax.tree.map(lambda x: 5 * x, target.params))
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=4, calibration_rank=8, rng=jax.random.key(2)
    )
    fd.save_target(target, path / "target")
    fd.save_draft(draft, target, path / "draft")
    build_byte_tokenizer().save_pretrained(path / "target")
    return path


@pytest.fixture
def run_script(directory: Path) -> Iterator[Callable[..., None]]:
    """run_script("demo", "--repeats=1") runs infer/demo.py on the tiny model."""
    before = set(flags.FLAGS)

    def run(name: str, *arguments: str, tiny: bool = True) -> None:
        spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        models = [f"--target={directory / 'target'}", f"--draft={directory / 'draft'}"]
        module.main(flags.FLAGS([name, *(models if tiny else []), *arguments]))

    yield run
    # Each script has flags of its own; all of them live in one global table.
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
