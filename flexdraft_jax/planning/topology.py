"""TPU slices that aren't there: devices that libtpu compiles for, on any machine."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from flexdraft_jax.parallel.locks import take_lock
from flexdraft_jax.parallel.mesh import parse_mesh

# What the cloud calls a slice of each generation: v5p counts cores, of which a chip has two.
_SLICES = {"v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}


@dataclass(frozen=True)
class Slice:
    """A TPU slice by name.

    Attributes:
        generation: "v5e", "v5p" or "v6e".
        shape: chips along each axis of its interconnect.
    """

    generation: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As libtpu takes it: "v5e:2x4"."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Chips, each of which is one JAX device."""
        return math.prod(self.shape)

    @property
    def accelerator_type(self) -> str:
        """As one rents it: "v5litepod-8"."""
        prefix, cores = _SLICES[self.generation]
        return f"{prefix}-{cores * self.num_chips}"


def parse_slice(name: str) -> Slice:
    """Reads "v5e:2x4", "v5p:2x2x1" or "v6e:16x16".

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(v5e|v5p|v6e):([1-9]\d{0,3}(?:x[1-9]\d{0,3}){1,2})", name)
    if found is None:
        raise ValueError(f"topology={name!r}: must be like v5e:2x4, v5p:2x2x1 or v6e:4x4")
    return Slice(found[1], tuple(map(int, found[2].split("x"))))


def slice_devices(of: Slice) -> list[jax.Device]:
    """Devices to compile for; they can hold and run nothing.

    Waits while another process does so, as libtpu serves one at a time.

    Raises:
        ValueError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology={of.name!r}: compiling for a TPU takes libtpu, which is not installed; "
            'pip install "flexdraft_jax[tpu_plan]"'
        )
    _libtpu_alone()
    # Or it asks the cloud which slice this machine is part of.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = of.accelerator_type
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    try:
        return list(topologies.get_topology_desc(of.name, platform="tpu").devices)
    except Exception as error:  # Of libtpu's own, and different ones.
        raise ValueError(f"topology={of.name!r}: libtpu has no such slice ({error})") from error


def slice_mesh(of: Slice, sizes: str) -> Mesh:
    """The mesh over all chips of a slice.

    Args:
        of: the slice.
        sizes: such as "data=2,tensor=4".

    Raises:
        ValueError: sizes that are none, or not as many as there are chips.
    """
    mesh = parse_mesh(sizes).build(slice_devices(of))
    if mesh.size != of.num_chips:
        raise ValueError(f"mesh={sizes!r}: must be all {of.num_chips} chips of {of.name}")
    return mesh


@functools.cache  # The file stays open, and the lock is held, until this process ends.
def _libtpu_alone() -> IO[str]:
    """Waits until no other process uses libtpu for this: two at once would abort."""
    # One for each user: nobody may write another's.
    name = f"flexdraft_jax_libtpu_{os.getuid()}.lock"
    file = (Path(tempfile.gettempdir()) / name).open("w")
    if not take_lock(file):
        print("another process compiles for a TPU: waiting for it", file=sys.stderr)
        take_lock(file, wait=True)
    return file
