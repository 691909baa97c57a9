"""Targets with random weights, of Qwen3's kind: a step costs what its shapes cost."""

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.checkpoints.published import TARGETS
from flexdraft_jax.config import TargetConfig
from flexdraft_jax.models.draft import Draft, init_draft
from flexdraft_jax.models.target import Target, init_target

RANDOM_TARGETS = {
    "1m": TargetConfig(
        model_type="qwen3",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    "10m": TargetConfig(
        model_type="qwen3",
        vocab_size=2048,
        hidden_size=320,
        intermediate_size=800,
        num_layers=8,
        num_heads=5,
        num_kv_heads=5,
        head_dim=64,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    "100m": TargetConfig(
        model_type="qwen3",
        vocab_size=32768,
        hidden_size=768,
        intermediate_size=2048,
        num_layers=12,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    **TARGETS,
}
_DRAFT_LAYERS = 2
_CALIBRATION_RANK = 64


def random_models(
    name: str, block_size: int, dtype: DTypeLike = "float32", mesh: Mesh | None = None
) -> tuple[Target, Draft]:
    """A target with random weights, by its key in `RANDOM_TARGETS`, and an untrained draft.

    Args:
        name: of the size.
        block_size: n of the draft.
        dtype: of the weights.
        mesh: as for `init_target`.

    Raises:
        ValueError: an unknown name, or weights that do not divide among the mesh's devices.
    """
    if name not in RANDOM_TARGETS:
        raise ValueError(f"random target {name!r}: must be one of {', '.join(RANDOM_TARGETS)}")
    target = init_target(RANDOM_TARGETS[name], jax.random.key(0), dtype, mesh=mesh)
    num_draft_layers, calibration_rank = _DRAFT_LAYERS, _CALIBRATION_RANK
    if name in TARGETS:
        num_draft_layers, calibration_rank = 5, 1024  # As published.
    draft = init_draft(
        target,
        num_draft_layers=num_draft_layers,
        block_size=block_size,
        calibration_rank=calibration_rank,
        rng=jax.random.key(1),
    )
    return target, draft
