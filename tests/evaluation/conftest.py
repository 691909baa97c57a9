"""A tiny model with a byte-level tokenizer, lively enough to write more than one token for ever."""

import dataclasses

import jax
import pytest

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
    """Target, draft (n = 4) and tokenizer."""
    target = fd.init_target(CONFIG, jax.random.key(0))
    target = dataclasses.replace(target, params=_noisy(target.params, 0.2, seed=1))
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=4, calibration_rank=8, rng=jax.random.key(2)
    )
    draft = dataclasses.replace(draft, params=_noisy(draft.params, 0.02, seed=3))
    return Models(target, draft, build_byte_tokenizer(), "tiny")
