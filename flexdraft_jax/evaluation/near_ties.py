"""Tokens that the target's rounding decides.

Two tokens whose logits are closer than one rounding step may change places when sums are taken in
another order, as a pass over a block takes them beside a pass over one token. There greedy decoding
may part from plain decoding. Rounding adds up over the layers, and of a sparse model's experts two
may change places as well, so these are the fewest such tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.rows import padded
from flexdraft_jax.decoding.sizes import bucket
from flexdraft_jax.models.target import Params, Target, TargetModel


def near_ties(target: Target, prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
    """Whether a near-tie decided each token of a greedy answer.

    A near-tie is a gap between the two largest logits of at most eps times the larger one, with the
    eps of the target's dtype: 1/128 in bfloat16.

    Args:
        target: the model.
        prompt: token ids.
        answer: the tokens behind it.
    """
    tokens = [*prompt, *answer]
    row = padded([tokens], 0, bucket(len(tokens)))
    ties = np.array(_near_ties(target.config, target.dtype, target.params, row))[0]
    return ties[len(prompt) - 1 : len(tokens) - 1].tolist()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _near_ties(
    config: TargetConfig, dtype: DTypeLike, params: Params, tokens: jax.Array
) -> jax.Array:
    """[B, T] bool: whether the token behind each of these is decided by a near-tie."""
    logits: Any = TargetModel(config, dtype).apply({"params": params}, tokens)  # [B, T, V]
    largest = jax.lax.top_k(logits, 2)[0]
    gap = largest[..., 0] - largest[..., 1]
    return gap <= jnp.finfo(dtype).eps * jnp.abs(largest[..., 0])
