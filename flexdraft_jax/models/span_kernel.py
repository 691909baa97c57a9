"""Pallas kernels: attention to the keys that are seen, in time and traffic.

Queries see spans of keys (`masks.Span`); what is outside is neither fetched nor multiplied.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from flexdraft_jax.models.cache import KeysValues
from flexdraft_jax.models.masks import Span
from flexdraft_jax.models.span_kernel_gpu import attend_on_gpu
from flexdraft_jax.models.span_kernel_tpu import attend_on_tpu
from flexdraft_jax.parallel.mesh import RULES


def attend_to_spans(
    q: jax.Array, kv: KeysValues, span: Span, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of scaled queries.

    Args:
        q: [B, K, G, R, T / G, H].
        kv: keys and values [B, K, S, H].
        span: which of them each query sees.
        mesh: that rows and key/value heads are spread over, as far as they divide; None for one
            device.

    Returns:
        Mean values [B, K, G, R, T / G, H] and the logarithm of the sum of exp(score), with 1 in the
        place of H, both float32; about MASKED for a query that sees nothing.
    """
    batch, kv_heads, groups, repeats, group_size, head_dim = q.shape
    ends = jnp.stack([jnp.broadcast_to(x, (batch, groups * group_size)) for x in span], axis=-1)
    ends = jnp.repeat(ends.reshape(batch, groups, 1, group_size, 2), repeats, axis=2)
    rows = q.reshape(batch, kv_heads, -1, head_dim)  # [B, K, G * R * T / G, H]
    args = rows, *kv, ends.reshape(batch, -1, 2).astype(jnp.int32)
    on_each = _on_any_platform
    if mesh is not None:
        row_axes, head_axes = _dividing(mesh, batch=batch, kv_heads=kv_heads)
        by_head = PartitionSpec(row_axes, head_axes)
        in_specs = by_head, by_head, by_head, PartitionSpec(row_axes)
        on_each = jax.shard_map(
            on_each, mesh=mesh, in_specs=in_specs, out_specs=(by_head, by_head), check_vma=False
        )
    values, log_total = on_each(*args)
    return values.reshape(q.shape), log_total.reshape(*q.shape[:-1], 1)


def _dividing(mesh: Mesh, **sizes: int) -> list[tuple[str, ...]]:
    """Mesh axes of each logical axis; none where its size does not divide."""
    shares = {axis: math.prod(mesh.shape[name] for name in RULES[axis]) for axis in sizes}
    return [() if size % shares[axis] else RULES[axis] for axis, size in sizes.items()]


def _on_any_platform(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.platform_dependent(
        *args,
        tpu=attend_on_tpu,
        cuda=attend_on_gpu,
        default=functools.partial(attend_on_tpu, interpret=True),
    )
