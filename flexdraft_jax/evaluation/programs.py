"""Compiled programs, before there are more of them than a process can hold."""

import gc
import pathlib

import jax

_MEMORY_MAPS = pathlib.Path("/proc/self/maps")  # Linux alone has the file, and the limit.
# On a CPU a compiled program maps dozens, and hundreds where it has many layers. At
# vm.max_map_count, 65,530 by default, XLA crashes.
_MOST_MEMORY_MAPS = 30_000


def forget_programs_if_many() -> None:
    """Drops all compiled programs of JAX once they fill half of what Linux lets a process map.

    For who measures one shape after the other and comes back to none.
    """
    if _MEMORY_MAPS.exists() and _MEMORY_MAPS.read_bytes().count(b"\n") > _MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()
