"""Several processes, one per host of a pod: starting them, and what they tell each other."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

_Result = TypeVar("_Result")

_PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(*, pod: bool = False) -> None:
    """Joins the other processes of a run; before anything else of JAX, and alone it does nothing.

    Args:
        pod: JAX finds the other processes by itself: TPU pods, SLURM, Open MPI. Otherwise the
            environment says who they are: `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
            `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Raises:
        ValueError: some of the three are set and others are not, or they make no sense.
    """
    # Its handler would take SIGTERM away from StopSignal, and from everything before the loop.
    jax.config.update("jax_enable_preemption_service", False)
    if pod:
        jax.distributed.initialize()
        return
    found = {name: os.environ[name] for name in _PROCESS_VARIABLES if os.environ.get(name)}
    if not found:
        return
    given = ", ".join(f"{name}={value}" for name, value in found.items())
    if len(found) < len(_PROCESS_VARIABLES):
        missing = ", ".join(name for name in _PROCESS_VARIABLES if name not in found)
        raise ValueError(f"{given}: {missing} must be set too, or none of them")
    coordinator, num_processes, process_id = found.values()
    if not (num_processes.isdecimal() and process_id.isdecimal()):
        raise ValueError(f"{given}: the last two must be whole numbers")
    if ":" not in coordinator:
        raise ValueError(f"{given}: the first must be host:port of process 0")
    if not int(process_id) < int(num_processes):
        raise ValueError(f"{given}: the last must be in 0..{int(num_processes) - 1}")
    jax.distributed.initialize(
        coordinator, int(num_processes), int(process_id), cluster_detection_method="deactivate"
    )


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextmanager
def main_first(what: str) -> Iterator[None]:
    """Process 0 goes through the body first, all others after it; `what` names the barrier."""
    if not is_main():
        multihost_utils.sync_global_devices(what)
    try:
        yield
    finally:  # After an error too: the others would wait until a time-out, and say nothing.
        if is_main():
            multihost_utils.sync_global_devices(what)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order, on each of them; all have to call this."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size]))[:, 0]
    padded = np.pad(own, (0, sizes.max() - own.size))
    texts = multihost_utils.process_allgather(padded)
    return [pickle.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def gather_results(mesh: Mesh | None, compute: Callable[[], _Result]) -> list[_Result]:
    """What `compute` gives on each process of a mesh; one result where it has one process.

    Raises:
        ValueError: it was raised on some process, which is named: on all, as those that wait for
            another one would wait for ever.
        OSError: the same, as the next.
        TypeError: the same.
    """
    if mesh is None or not mesh.is_multi_process:
        return [compute()]
    own: _Result | Exception
    try:
        own = compute()
    except (OSError, TypeError, ValueError) as error:
        own = error
    of_each = gather(own)
    for process, found in enumerate(of_each):
        if isinstance(found, Exception):
            raise type(found)(f"process {process}: {found}")
    return of_each


def to_host(tree: Any) -> Any:
    """Whole NumPy arrays on every process; all have to call this if one lies on several."""
    here = (x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(tree))
    return (
        jax.device_get(tree) if all(here) else multihost_utils.process_allgather(tree, tiled=True)
    )


def from_main(values: Mapping[str, float]) -> dict[str, float]:
    """The values of process 0, on every process; the names must be the same on all."""
    numbers = np.array(list(values.values()), np.float64)
    if jax.process_count() > 1:
        # As pairs of 32 bits, because JAX would round 64 of them.
        halves = multihost_utils.broadcast_one_to_all(numbers.view(np.uint32))
        numbers = np.asarray(halves).view(np.float64)
    return dict(zip(values, numbers.tolist(), strict=True))
