"""A mixture of experts by itself: both ways to compute it, and tokens that do not touch each other.

That it is the mixture that others compute, tests/models/test_hf_parity.py shows.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.config import Experts
from flexdraft_jax.models.experts import ExpertMLP

_CONFIG = fd.TargetConfig(
    model_type="qwen3_moe",
    vocab_size=40,
    hidden_size=24,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    experts=Experts(number=8, per_token=2, normalize=False),
)


@pytest.fixture(scope="module")
def mixture():
    """`apply(params, x)` and parameters of a mixture."""
    module = ExpertMLP(_CONFIG)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 1, 24))))
    return jax.jit(module.apply), params


def test_few_tokens_and_many_are_computed_alike(mixture):
    apply, params = mixture
    x = jax.random.normal(jax.random.key(1), (1, 9, 24))
    many = apply(params, x)
    assert _CONFIG.experts.fetched(3) and not _CONFIG.experts.fetched(9)
    for start in (0, 3, 6):
        few = apply(params, x[:, start : start + 3])
        np.testing.assert_allclose(few, many[:, start : start + 3], atol=1e-5)


def test_a_token_that_overflows_stays_alone(mixture):
    apply, params = mixture
    x = jax.random.normal(jax.random.key(1), (1, 9, 24))
    spoiled = apply(params, x.at[0, 4].set(3e38))
    assert not np.all(np.isfinite(spoiled[0, 4]))
    others = np.arange(9) != 4
    np.testing.assert_array_equal(spoiled[0, others], apply(params, x)[0, others])


def test_an_expert_that_overflows_spoils_only_tokens_that_chose_it(mixture):
    apply, params = mixture
    x = jax.random.normal(jax.random.key(1), (1, 9, 24))
    loud = {"params": params["params"] | {"up_proj": params["params"]["up_proj"].at[0].set(3e38)}}
    spoiled = ~np.isfinite(np.asarray(apply(loud, x)[0])).all(axis=-1)
    logits = np.asarray(x[0] @ params["params"]["router"])
    chosen = np.argsort(-logits, axis=-1)[:, :2]
    np.testing.assert_array_equal(spoiled, (chosen == 0).any(axis=-1))
    assert 0 < spoiled.sum() < 9


def test_more_experts_than_there_are():
    with pytest.raises(ValueError, match="per_token=3: must be from 1 to number=2"):
        Experts(number=2, per_token=3, normalize=True)
