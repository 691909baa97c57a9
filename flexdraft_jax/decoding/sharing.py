"""Batches that are spread over a mesh of devices, of one process or of several."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import check_is_mesh, describe_mesh, mesh_of, row_devices
from flexdraft_jax.parallel.processes import gather_results

# Is in the rows that nobody has.
NOBODY = Request(prompt=(0,), max_new_tokens=0, confidence_threshold=0.0)


def check_mesh(target: Target, draft: Draft | None, mesh: Mesh | None = None) -> Mesh | None:
    """The mesh that the weights lie on; None where they were never laid on one.

    Args:
        target: the model.
        draft: its draft, if any.
        mesh: that a caller asked for; None takes that of the weights.

    Raises:
        ValueError: weights lie elsewhere, or on a mesh that is none of `make_mesh`.
        TypeError: `mesh` is no mesh.
    """
    check_is_mesh(mesh)
    found = mesh_of(target.params)
    devices = _devices(target.params)
    if mesh is not None and mesh != found and (mesh.size > 1 or set(mesh.devices.flat) != devices):
        raise ValueError(
            f"mesh={describe_mesh(mesh)}: the target's weights lie on {describe_mesh(found)}; "
            "load them with load_target(..., mesh=mesh), or move them with spread_target"
        )
    if draft is not None and _devices(draft.params) != devices:
        raise ValueError(
            f"the draft's weights lie on {describe_mesh(mesh_of(draft.params))}, the target's on "
            f"{describe_mesh(found)}; load them with load_draft(..., mesh=mesh), or move them with "
            "spread_draft"
        )
    return found


def share_requests(
    mesh: Mesh | None, check: Callable[[], list[Request]], number: bool
) -> tuple[list[Request], slice]:
    """The requests of all processes that the mesh lies on, and which of them are this one's.

    Each process decodes all rows with all others, so each has to know them.

    Args:
        mesh: of the weights.
        check: gives this process's requests, or raises what is wrong with them.
        number: whether rows of all processes are numbered through, as their row ids.

    Raises:
        ValueError: whatever `check` raised on any process; it is named.
        TypeError: the same.
    """
    of_each = gather_results(mesh, check)
    process = jax.process_index() if len(of_each) > 1 else 0
    first = sum(map(len, of_each[:process]))
    requests = sum(of_each, [])
    if number:
        requests = [dataclasses.replace(r, row_id=row) for row, r in enumerate(requests)]
    return requests, slice(first, first + len(of_each[process]))


def fill_up(requests: Sequence[Request], mesh: Mesh | None) -> list[Request]:
    """The requests, and rows that nobody has, until they divide among the mesh's devices."""
    return [*requests, *[NOBODY] * (-len(requests) % row_devices(mesh))]


def _devices(params: Any) -> set[jax.Device]:
    return jax.tree.leaves(params)[0].sharding.device_set
