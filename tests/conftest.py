"""Settings of every test: the CPU, unless the user chose otherwise, and quick compilation.

A test compiles far longer than it computes. LLVM's optimisations are switched off, which halves
that; JAX's and XLA's own are on. Compiled programs are not kept between runs: reading them back
from JAX's persistent cache has crashed on the CPU.
"""

import dataclasses
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Profiles of this machine would decide what the tests compile.
os.environ["FLEXDRAFT_JAX_PROFILES"] = os.devnull
# Before JAX is imported anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402

import flexdraft_jax as fd  # noqa: E402
from flexdraft_jax.data.chat import build_byte_tokenizer  # noqa: E402
from flexdraft_jax.evaluation.loading import Models  # noqa: E402

_MEMORY_MAPS = Path("/proc/self/maps")  # Linux alone has the file, and the limit.
# Each compiled program maps a few dozen; at vm.max_map_count, 65,530 by default, XLA crashes.
_MAX_MEMORY_MAPS = 30_000


@pytest.fixture(autouse=True, scope="module")
def forget_programs_before_there_are_too_many() -> Iterator[None]:
    """Drops all compiled programs behind a module once they have taken many memory maps."""
    yield
    if _MEMORY_MAPS.exists() and _MEMORY_MAPS.read_bytes().count(b"\n") > _MAX_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


TINY_CONFIG = fd.TargetConfig(
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


def _noisy(params, scale: float, seed: int):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [x + e for x, e in zip(leaves, noise, strict=True)])


@pytest.fixture(scope="session")
def models() -> Models:
    """A tiny target and draft (n = 4) with a byte tokenizer; it writes more than one token."""
    target = fd.init_target(TINY_CONFIG, jax.random.key(0))
    target = dataclasses.replace(target, params=_noisy(target.params, 0.2, seed=1))
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=4, calibration_rank=8, rng=jax.random.key(2)
    )
    draft = dataclasses.replace(draft, params=_noisy(draft.params, 0.02, seed=3))
    return Models(target, draft, build_byte_tokenizer(), "tiny")
