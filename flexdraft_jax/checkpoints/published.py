"""Shapes of published targets by name, so that they need no download."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flexdraft_jax.checkpoints.hf import read_target_config
from flexdraft_jax.checkpoints.hf_config import target_config_from_hf
from flexdraft_jax.checkpoints.paths import read_json
from flexdraft_jax.config import TargetConfig


def _qwen3(
    layers: int, hidden: int, heads: int, intermediate: int, tied: bool = False
) -> TargetConfig:
    return TargetConfig(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        qk_norm=True,
        max_position_embeddings=40_960,
        eos_token_ids=(151_645,),
    )


# As in their config.json.
TARGETS = {
    "Qwen3-0.6B": _qwen3(28, 1024, 16, 3072, tied=True),
    "Qwen3-1.7B": _qwen3(28, 2048, 16, 6144, tied=True),
    "Qwen3-4B": _qwen3(36, 2560, 32, 9728, tied=True),
    "Qwen3-8B": _qwen3(36, 4096, 32, 12_288),
    "Qwen3-14B": _qwen3(40, 5120, 40, 17_408),
    "Qwen3-32B": _qwen3(64, 5120, 64, 25_600),
}


def find_target(name: str) -> TargetConfig:
    """A target by a name of `TARGETS`, its directory, or its config.json.

    Raises:
        ValueError: none of these.
    """
    path = Path(name)
    if name in TARGETS:
        return TARGETS[name]
    is_dir = is_file = False
    with contextlib.suppress(OSError):  # Such as a name that is too long for a file.
        is_dir, is_file = path.is_dir(), path.is_file()
    if is_dir:
        return read_target_config(path)
    if not is_file:
        raise ValueError(
            f"target={name!r}: must be a directory, a config.json or one of {', '.join(TARGETS)}"
        )
    config = read_json(path)
    try:
        return target_config_from_hf(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
