"""Programs compiled ahead of time, and what the compiler says of them."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.stages import Lowered

from flexdraft_jax.planning.hlo import Collective, Program, read_program
from flexdraft_jax.planning.roofline import Message

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_TOO_LARGE = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")


@dataclass(frozen=True)
class Memory:
    """Bytes of a chip's memory.

    Attributes:
        parts: arguments by what they are, such as "weights".
        aliased: of the arguments that results are written to, in place.
        results: that have memory of their own.
        temporaries: what a run needs beside them, the program's code included.
        total: all of it, as the compiler counts: with padding.
        limit: that a program may use; None where all fitted and the compiler did not say.
    """

    parts: dict[str, int]
    aliased: int
    results: int
    temporaries: int
    total: int
    limit: int | None = None


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind, those of one size together.

    Attributes:
        kind: "all-reduce", ..
        nbytes: of the result of one of them.
        group: chips that take part.
        times: in one run; within a decoding loop, in one step of each kind.
        in_step: whether it is in the decoding loop.
        sent: bytes that a chip sends each time, at least.
    """

    kind: str
    nbytes: int
    group: int
    times: int
    in_step: bool
    sent: float


@dataclass(frozen=True)
class Compiled:
    """A program for a slice.

    Attributes:
        name: of the program.
        fits: whether a chip's memory holds it.
        memory: of a chip.
        collectives: what chips send each other; empty where it does not fit.
        seconds: that compiling took.
    """

    name: str
    fits: bool
    memory: Memory
    collectives: tuple[Traffic, ...]
    seconds: float

    def messages(self, in_step: bool) -> list[Message]:
        """The collectives within the decoding loop, or those outside."""
        return [
            Message(c.kind, c.sent, c.group, c.times)
            for c in self.collectives
            if c.in_step == in_step
        ]


def abstract(tree: Any, places: Any) -> Any:
    """Shapes that say where they lie: arguments to compile for.

    Args:
        tree: arrays, or what `jax.eval_shape` makes of them.
        places: the same tree of shardings.
    """
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def bytes_on_a_chip(tree: Any) -> int:
    """Of abstract arrays, without padding."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def compile_program(
    name: str, lowered: Lowered, parts: Mapping[str, Any]
) -> tuple[Compiled, Program | None]:
    """Compiles, or finds out how much too large it is.

    Args:
        name: of the program.
        lowered: for the devices of a slice.
        parts: its arguments by what they are, abstract.

    Returns:
        What the compiler says, and the program; None where it does not fit.
    """
    start = time.perf_counter()
    sizes = {part: bytes_on_a_chip(tree) for part, tree in parts.items()}
    try:
        with tempfile.TemporaryDirectory() as dump:
            compiled = lowered.compile(compiler_options={"xla_dump_to": dump})
            seconds = time.perf_counter() - start
            program = read_program(_text(compiled, Path(dump)))
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if found is None:
            raise
        used, limit = (int(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
        rest = max(used - sum(sizes.values()), 0)
        memory = Memory(sizes, 0, 0, rest, used, limit)
        return Compiled(name, False, memory, (), time.perf_counter() - start), None
    stats: Any = compiled.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporaries = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    memory = Memory(
        parts=sizes,
        aliased=stats.alias_size_in_bytes,
        results=results,
        temporaries=temporaries,
        total=stats.argument_size_in_bytes + results + temporaries,
    )
    return Compiled(name, True, memory, _traffic(program.collectives()), seconds), program


def _text(compiled: jax.stages.Compiled, dump: Path) -> str:
    """The optimised program, if need be as the compiler has written it down."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        # What libtpu hands over, jaxlib may not be able to read, as with some programs for v5p.
        (path,) = dump.glob("*.after_optimizations.txt")
        return path.read_text()


def _traffic(collectives: Sequence[Collective]) -> tuple[Traffic, ...]:
    together: dict[Traffic, int] = {}
    for c in collectives:
        key = Traffic(c.kind, c.nbytes, c.group, 0, c.in_loop, c.sent)
        together[key] = together.get(key, 0) + c.times
    return tuple(dataclasses.replace(key, times=times) for key, times in together.items())
