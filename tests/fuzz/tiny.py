"""A tiny target, its draft and a byte tokenizer: those of the tests."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

import flexdraft_jax as fd
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.evaluation.loading import Models

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
    max_position_embeddings=128,
    eos_token_ids=(258,),
)


@functools.cache
def models() -> Models:
    """Random, and lively enough to write more than one token."""
    target = fd.init_target(CONFIG, jax.random.key(0))
    target = dataclasses.replace(target, params=_noisy(target.params, 0.2, seed=1))
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=4, calibration_rank=8, rng=jax.random.key(2)
    )
    return Models(target, draft, build_byte_tokenizer(), "tiny")


def _noisy(params: Any, scale: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), params)
