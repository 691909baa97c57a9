"""What decoding takes of the device's memory, known before it starts."""

import bisect
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import mesh_of, row_devices


@dataclasses.dataclass(frozen=True)
class Work:
    """The passes of a batch.

    Attributes:
        block_size: n.
        num_groups: G, mask groups of a row in one pass.
        chunk: P, tokens of a prompt that are read in one call.
        draws: whether tokens may be drawn at random, which takes more than the largest logit does.
        reading_rows: R, rows that read in one call; None for all.
    """

    block_size: int
    num_groups: int
    chunk: int
    draws: bool
    reading_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes that decoding takes on a device.

    Attributes:
        weights: of target and draft.
        cache: of its rows.
        workspace: what the largest pass needs beside them, about.
    """

    weights: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.workspace


def plan_memory(
    target: Target, draft: Draft | None, work: Work, batch_size: int, num_slots: int
) -> MemoryPlan:
    """What a batch of B rows takes when the cache has grown to S slots."""
    c, item, mesh = target.config, target.dtype.itemsize, mesh_of(target.params)
    leaves = jax.tree.leaves([target.params, None if draft is None else draft.params])
    share = _share(c, mesh)
    row = 2 * c.num_layers * share.num_kv_heads * num_slots * c.head_dim * item
    n = work.block_size
    rows = -(-batch_size // row_devices(mesh))
    # A few are read everywhere.
    reading_rows = rows if work.reading_rows is None else min(work.reading_rows, batch_size)
    # Logits of a block's candidates, or of its drafts; then of a prompt's last token and n - 1
    # drafts. Arrays of their size exist at once: as measured, with all that is made of them.
    logits = 4 * n * share.vocab_size * (8 if work.draws else 3)
    step = logits + _pass_bytes(c, share, item, n, work.num_groups * n, num_slots)
    read = logits + _pass_bytes(c, share, item, work.chunk, n, num_slots)
    if work.reading_rows is not None:
        read += 2 * row  # Rows are taken out of the cache, and put back.
    weights = sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    cache = rows * row
    workspace = max(rows * step, reading_rows * read)
    if c.experts is not None:
        workspace += 3 * c.hidden_size * share.intermediate_size * item  # Fetched matrices.
    if mesh is not None and mesh.shape["fsdp"] > 1:
        # A weight is gathered when it is used.
        workspace += max(leaf.nbytes for leaf in leaves) // mesh.shape["tensor"]
    on_cpu = any(device.platform == "cpu" for device in _devices(target))
    # Reading multiplies many tokens at once, whatever the batch; a plain step one of each row.
    counts = {2, min(rows, 2)}
    if item < 4 and on_cpu and any(_copies_to_multiply(target.dtype, k) for k in counts):
        workspace += 4 // item * (weights + cache)
    return MemoryPlan(weights, cache, workspace)


def check_memory(
    target: Target,
    draft: Draft | None,
    work: Callable[[int], Work],
    batch_size: int,
    num_slots: int,
) -> None:
    """Refuses a batch that does not fit, as far as is known.

    Args:
        target: the model.
        draft: its draft, if there is one.
        work: of a batch of B rows; fewer rows may read more of a prompt at once.
        batch_size: B.
        num_slots: S, when the cache has grown.

    Raises:
        ValueError: with the numbers, and the largest batch that would fit.
    """

    def plan_of(rows: int) -> MemoryPlan:
        return plan_memory(target, draft, work(rows), rows, num_slots)

    limit = memory_limit(target)
    plan = plan_of(batch_size)
    if limit is None or plan.total <= limit:
        return
    # Even where a plan does not grow from batch to batch, the one that is found was seen to fit.
    each = row_devices(mesh_of(target.params))
    sizes = range(each, batch_size, each)
    fitting = each * bisect.bisect_right(sizes, limit, key=lambda rows: plan_of(rows).total)
    raise ValueError(
        f"a batch of {batch_size} rows of {num_slots} tokens does not fit into memory: "
        f"{_size(plan.weights)} of weights, {_size(plan.cache)} of cache and "
        f"{_size(plan.workspace)} of workspace are {_size(plan.total)}, and the device has "
        f"{_size(limit)}; "
        + (f"the largest batch that fits is {fitting}" if fitting else "not even one row fits")
    )


def memory_limit(target: Target) -> int | None:
    """Bytes that each device of the weights has; None if unknown."""
    devices = [x for x in _devices(target) if x.process_index == jax.process_index()]
    if devices[0].platform != "cpu":
        return (devices[0].memory_stats() or {}).get("bytes_limit")
    if not hasattr(os, "sysconf"):
        return None
    whole = min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits()])
    return whole // len(devices)  # They are made up, and share it.


# Control groups of Linux: where they lie, and to which this process belongs.
_GROUPS = "/sys/fs/cgroup"
_OWN_GROUPS = "/proc/self/cgroup"
# By controller: groups of version 2, which name none, and of version 1.
_LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def _container_limits() -> Iterator[int]:
    """What the control group of this process may take, and each one that it is part of."""
    own = dict.fromkeys(_LIMIT_FILES, "/")
    with contextlib.suppress(OSError):
        for line in pathlib.Path(_OWN_GROUPS).read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            own |= {c: group for c in controllers.split(",") if c in _LIMIT_FILES}
    for controller, group in own.items():
        folder = pathlib.Path(_GROUPS, controller)
        for part in ("", *group.strip("/").split("/")):
            folder /= part
            with contextlib.suppress(OSError, ValueError):  # It is not there, or says "max".
                yield int((folder / _LIMIT_FILES[controller]).read_text())


def _devices(target: Target) -> set[jax.Device]:
    return jax.tree.leaves(target.params)[0].devices()


class _Share(NamedTuple):
    """What of a layer, and of the logits, a device computes."""

    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int


def _share(config: TargetConfig, mesh: Mesh | None) -> _Share:
    parts = 1 if mesh is None else mesh.shape["tensor"]
    kv_heads = config.num_kv_heads
    experts = 1 if config.experts is None else config.experts.number  # Tokens go through all.
    return _Share(
        num_heads=config.num_heads // parts,
        num_kv_heads=kv_heads if kv_heads % parts else kv_heads // parts,
        intermediate_size=experts * config.intermediate_size // parts,
        vocab_size=config.vocab_size // parts,
    )


def _pass_bytes(
    config: TargetConfig,
    share: _Share,
    item: int,
    num_tokens: int,
    num_masks: int,
    num_slots: int,
) -> int:
    """Of one row in a pass: the widest layer, and keys and values for the cache."""
    c, wide = config, 4  # Bytes of a float32, in which most of it is.
    tokens = num_tokens + num_masks
    # Scores and the weights that are made of them.
    scores = 2 * wide * share.num_heads * tokens * (num_slots + tokens)
    heads = 2 * (share.num_heads + 2 * share.num_kv_heads) * c.head_dim
    layer = wide * tokens * (4 * c.hidden_size + 3 * share.intermediate_size + heads)
    fresh = 2 * c.num_layers * share.num_kv_heads * num_tokens * c.head_dim * item
    return scores + layer + fresh


@functools.cache
def _copies_to_multiply(dtype: jnp.dtype, num_tokens: int) -> bool:
    """Whether XLA on the CPU copies 16-bit matrices in float32: JAX 0.10 always, 0.11 at times."""
    size = 128
    tokens, matrix = (jax.ShapeDtypeStruct((length, size), dtype) for length in (num_tokens, size))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        memory = jax.jit(jnp.matmul).lower(tokens, matrix).compile().memory_analysis()
    return memory is None or memory.temp_size_in_bytes >= 4 * size**2


def _size(num_bytes: int) -> str:
    """1536 -> "1.5 KiB"."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"
