"""Gradients a part at a time: the parts of a batch one after the other, in one compiled loop.

Memory is that of one part. Nothing is computed twice: each part goes forward and backward before
the next one starts, and only the sum of gradients and the parts' small results are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from flexdraft_jax.training.optimizer import Params

_Tree = TypeVar("_Tree")
_Result = TypeVar("_Result")


def accumulate(
    part: Callable[[Params, _Tree], tuple[Params, _Result]],
    total: Params,
    batch: _Tree,
    num_parts: int,
    axis: int,
) -> tuple[Params, _Result]:
    """Runs `part` over equal parts of `batch`, handing the sum of gradients on.

    Args:
        part: the sum so far and a part of the batch -> the new sum, and results that have `axis`.
        total: the sum before the first part.
        batch: arrays that have `axis`, whose size `num_parts` divides.
        num_parts: parts to make.
        axis: the axis to divide.

    Returns:
        The sum after the last part, and the results of all parts, in the order of the batch.
    """
    if num_parts == 1:
        return part(total, batch)
    total, results = jax.lax.scan(part, total, _divide(batch, num_parts, axis))
    return total, _join(results, axis)


def add(total: Params, gradients: Params) -> Params:
    """The sum, in the precision of `total`."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, gradients)


def _divide(batch: _Tree, num_parts: int, axis: int) -> _Tree:
    """Part i takes places i, i + parts, ..: so an axis that is spread over devices stays so.

    A part of neighbours would lie on a few of the devices, and all others would have to wait.
    """

    def divide(x: jax.Array) -> jax.Array:
        shape = (*x.shape[:axis], x.shape[axis] // num_parts, num_parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis + 1, 0)

    return jax.tree.map(divide, batch)


def _join(results: _Tree, axis: int) -> _Tree:
    """Undoes `_divide`."""

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis + 1)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(join, results)
