"""Settings of every test: the CPU, unless the user chose otherwise, and quick compilation.

A test compiles far longer than it computes. LLVM's optimisations are switched off, which halves
that; JAX's and XLA's own are on. Compiled programs are not kept between runs: reading them back
from JAX's persistent cache has crashed on the CPU.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Profiles of this machine would decide what the tests compile.
os.environ["FLEXDRAFT_JAX_PROFILES"] = os.devnull
# Before JAX is imported anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402

import flexdraft_jax as fd  # noqa: E402
from flexdraft_jax.config import Experts  # noqa: E402
from flexdraft_jax.data.chat import build_byte_tokenizer  # noqa: E402
from flexdraft_jax.evaluation.loading import Models  # noqa: E402
from flexdraft_jax.evaluation.programs import forget_programs_if_many  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def forget_programs_before_there_are_too_many() -> Iterator[None]:
    """Behind a module, whose tests share them."""
    yield
    forget_programs_if_many()


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


@pytest.fixture(scope="session")
def every_feature() -> dict[str, Any]:
    """Fields of a `TargetConfig` that switch on, all at once, what only some families have."""
    return dict(
        local_rope_theta=100.0,
        partial_rotary_factor=0.5,
        query_pre_attn_scalar=12,
        hidden_act="gelu_pytorch_tanh",
        output_norms=True,
        zero_centered_norms=True,
        scale_embeddings=True,
        experts=Experts(number=6, per_token=2, normalize=True),
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


@pytest.fixture
def run_on_eight_devices() -> Callable[[Path, str], None]:
    """run_on_eight_devices(file, marks) runs its tests in a process that has eight devices."""

    def run(file: Path, marks: str) -> None:
        environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
        environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marks, str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout

    return run


# By the end of a weight's path, on data, fsdp and tensor; what is not there are the norms' scales.
_WEIGHT_SPECS = {
    "embed/embedding": ("tensor", "fsdp"),
    "lm_head/kernel": ("fsdp", "tensor"),
    "q_proj/kernel": ("fsdp", "tensor"),
    "k_proj/kernel": ("fsdp", "tensor"),
    "v_proj/kernel": ("fsdp", "tensor"),
    "o_proj/kernel": ("tensor", "fsdp"),
    "gate_proj/kernel": ("fsdp", "tensor"),
    "up_proj/kernel": ("fsdp", "tensor"),
    "down_proj/kernel": ("tensor", "fsdp"),
    "hidden/kernel": ("tensor", "fsdp"),
    "hidden/bias": ("fsdp",),
    "output/kernel": ("fsdp", "tensor"),
    "output/bias": ("tensor",),
    "q_norm/scale": (),
    "k_norm/scale": (),
}


@pytest.fixture(scope="session")
def assert_weight_places() -> Callable[..., None]:
    """assert_weight_places(params, mesh, num_kv_heads) holds each weight's place against a list."""

    def check(params: Any, mesh: jax.sharding.Mesh, num_kv_heads: int) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = "/".join(key.key for key in path[-2:])
            spec = _WEIGHT_SPECS.get(name, ("fsdp",))
            if name[:6] in ("k_proj", "v_proj") and num_kv_heads % mesh.shape["tensor"]:
                spec = ("fsdp", None)
            wanted = jax.NamedSharding(mesh, jax.P(*spec))
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (name, leaf.sharding)

    return check
