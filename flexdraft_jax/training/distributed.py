"""Training on several processes: sharing rows, agreeing on what to do.

Every process runs the same program on the same steps. Each reads its own rows; process 0 alone
writes files that are not checkpoints. The working directory must be one that all of them see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from flexdraft_jax.parallel.mesh import (
    MESH_AXES,
    optimizer_shardings,
    put,
    replicated,
    row_sharding,
)
from flexdraft_jax.training.optimizer import Params, TrainState
from flexdraft_jax.training.rows import Rows


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process reads.

    Attributes:
        index: of the part, 0..count-1.
        count: equal parts of a batch, in the order of the processes' rows.
    """

    index: int
    count: int


def batch_share(mesh: Mesh, batch_size: int) -> Share:
    """This process's part of a batch of `batch_size` rows.

    Processes that `tensor` spans hold parts of the same rows, so they read the same share.

    Raises:
        ValueError: the rows do not divide among the mesh's devices, or the mesh lies so that this
            process's rows are no one run.
    """
    places = row_sharding(mesh, batch_size).addressable_devices_indices_map((batch_size,))
    starts = {rows[0].indices(batch_size)[:2] for rows in places.values() if rows is not None}
    first, last = min(start for start, _ in starts), max(stop for _, stop in starts)
    own = sum(stop - start for start, stop in starts)
    if own != last - first or batch_size % own or first % own:
        raise ValueError(
            f"mesh {dict(mesh.shape)}: this process's rows of a batch are {sorted(starts)}: must "
            "be one run of batch_size / processes rows; order the devices by process"
        )
    return Share(first // own, batch_size // own)


def global_rows(mesh: Mesh, batch: Mapping[str, NDArray[Any]], batch_size: int) -> Rows:
    """The batch of all processes, spread over the mesh, from this process's share of it.

    Args:
        mesh: of the run.
        batch: arrays [B / shares, T], named as in :class:`Rows`.
        batch_size: B.
    """
    place = row_sharding(mesh, batch_size)
    return Rows(
        **{
            name: jax.make_array_from_process_local_data(place, own, (batch_size, *own.shape[1:]))
            for name, own in batch.items()
        }
    )


def place_state(mesh: Mesh, state: TrainState, param_places: Params) -> TrainState:
    """The state, the same on every process, spread over the mesh; see `state_places`."""
    return put(state, state_places(mesh, state, param_places))


def state_places(mesh: Mesh, state: TrainState, param_places: Params) -> TrainState:
    """Where a state lies: the optimizer's beside its parameters, the rest everywhere.

    Args:
        mesh: of the run.
        state: arrays or shapes.
        param_places: shardings of the parameters.
    """
    whole = replicated(mesh)
    opt_state = optimizer_shardings(state.opt_state, param_places, state.params, whole)
    # mypy wants arrays in a TrainState; a tree of places has its form and other leaves.
    places: Any = TrainState(step=whole, params=param_places, opt_state=opt_state)  # type: ignore[arg-type]
    return places


class Agreement:
    """What any process wants, known to all of them at the same step without waiting.

    A signal may reach one host only, and clocks differ; yet all have to save and stop after the
    same step, or they wait for each other forever. So before each step every process sends its
    wishes into a tiny reduction, which the devices run ahead of the step, and reads the outcome
    when the step has been dispatched. (JAX's own preemption service agrees on SIGTERM only, and
    not on when it is time to save.)
    """

    def __init__(self, mesh: Mesh):
        """Agreement among the processes of `mesh`."""
        self._place = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        self._shape = (mesh.size, 2)
        self._local = len(mesh.local_devices)
        self._everywhere = replicated(mesh)

    def ask(self, stop: int, save: bool) -> jax.Array:
        """Sends the number of a signal to stop for (0 for none) and whether it is time to save.

        Returns:
            [2] int32: the largest number, and 1 if any process wants to save. `np.asarray` waits.
        """
        wishes = np.tile(np.array([stop, save], np.int32), (self._local, 1))
        spread = jax.make_array_from_process_local_data(self._place, wishes, self._shape)
        return _largest(spread, self._everywhere)


@partial(jax.jit, static_argnums=1)
def _largest(wishes: jax.Array, everywhere: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(wishes, axis=0), everywhere)
