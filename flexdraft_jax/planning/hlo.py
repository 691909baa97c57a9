"""What an optimised program does, read from its text: collectives, copies, large arrays.

The compiler's own estimates (`optimal_seconds`, `bytes accessed`) are not asked: they have been
found wrong, and count the body of a loop once. Here the body counts once too where nobody can know
how often it runs, as in decoding, so that numbers are of one step (of flex: one step of each kind);
and as often as it runs where the compiler knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_ITEM_BYTES = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_GROUPS_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS_SIZE = re.compile(r"'(\w+)'=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_LIMIT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"get-tuple-element\(.*index=(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_FAST_MEMORY = "S(1)}"  # In the layout of arrays that lie in a TPU's vector memory.


@dataclass(frozen=True)
class Array:
    """One array that an instruction makes, as one device holds it.

    Attributes:
        dtype: as in the text: "bf16".
        shape: sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Without padding."""
        return math.prod(self.shape) * _ITEM_BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """A line of the program.

    Attributes:
        name: unique within the program.
        opcode: "fusion", "all-reduce-start", ..
        arrays: that it makes; several for a tuple.
        called: names of the computations that it runs.
        trips: of a `while`, if known.
        line: the text.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    called: tuple[str, ...]
    trips: int | None
    line: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that it takes."""
        return _NAME.findall(self.line.partition(f" {self.opcode}(")[2].partition(")")[0])


@dataclass(frozen=True)
class Collective:
    """What devices send each other, as one of them sees it.

    Attributes:
        kind: of `COLLECTIVES`.
        nbytes: of its result, whole.
        group: devices that take part.
        times: how often it runs; in a loop of unknown length, in one round.
        in_loop: whether it is in one.
        instruction: the line.
    """

    kind: str
    nbytes: int
    group: int
    times: int
    in_loop: bool
    instruction: Instruction

    @property
    def sent(self) -> float:
        """Bytes that a device sends, at least, each time."""
        others = (self.group - 1) / self.group if self.group else 1.0
        factor = {
            "all-reduce": 2 * others,
            "all-gather": others,
            "reduce-scatter": others * self.group,
            "all-to-all": others,
        }
        return self.nbytes * factor.get(self.kind, 1.0)


@dataclass(frozen=True)
class Program:
    """An optimised program.

    Attributes:
        computations: lines of each, by name.
        entry: the name of the first one.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def collectives(self) -> list[Collective]:
        """Of one run; where branches differ, of the one that sends most."""
        found: dict[str, Collective] = {}
        for number, collective in enumerate(self._collectives(self.entry, 1, False)):
            # One that runs beside a chain of fusions stands in each of them, on one channel.
            channel = _CHANNEL.search(collective.instruction.line)
            found.setdefault(channel[1] if channel else f"without, {number}", collective)
        return list(found.values())

    def buffers(self, wanted: Callable[[Array], bool]) -> list[Instruction]:
        """Instructions that make such an array in memory: not those within fusions."""
        return [
            instruction
            for instruction in self._materialised()
            if instruction.opcode not in ("parameter", "get-tuple-element", "tuple", "while")
            and any(map(wanted, instruction.arrays))
        ]

    def copies(self, nbytes: int) -> list[Instruction]:
        """Instructions that copy an array of at least so many bytes within a device's memory.

        Not those that bring it into fast memory before it is used, and back.
        """
        return [
            instruction
            for instruction in self._materialised()
            if instruction.opcode in ("copy", "copy-start")
            and _FAST_MEMORY not in instruction.line
            and max((array.nbytes for array in instruction.arrays), default=0) >= nbytes
        ]

    def _materialised(self) -> Iterator[Instruction]:
        fused = {
            name
            for lines in self.computations.values()
            for line in lines
            if line.opcode == "fusion"
            for name in line.called
        }
        for name, lines in self.computations.items():
            if name not in fused:
                yield from lines

    def _collectives(self, name: str, times: int, in_loop: bool) -> list[Collective]:
        found: list[Collective] = []
        for line in self.computations.get(name, ()):
            kind = line.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                found.append(_collective(kind, line, times, in_loop))
            elif line.opcode == "conditional":
                branches = [self._collectives(branch, times, in_loop) for branch in line.called]
                found += max(branches, key=lambda part: sum(c.sent * c.times for c in part))
            else:
                rounds = self._rounds(line) if line.opcode == "while" else 1
                for called in line.called:
                    found += self._collectives(called, times * (rounds or 1), in_loop or not rounds)
        return found

    def _rounds(self, loop: Instruction) -> int | None:
        """Of a loop that counts up to a constant, such as a scan; None if nobody knows."""
        if loop.trips is not None:
            return loop.trips
        for name in loop.called:
            lines = self.computations.get(name, ())
            limits = [int(limit) for line in lines for limit in _LIMIT.findall(line.line)]
            if 0 < len(lines) <= 4 and "direction=LT" in lines[-1].line and len(limits) == 1:
                return -(-limits[0] // self._stride(loop, lines))
        return None

    def _stride(self, loop: Instruction, condition: Sequence[Instruction]) -> int:
        """What a round adds to the counter: more than 1 where the compiler has joined rounds."""
        named = {line.name: line for line in condition}
        compared = [named[name].line for name in condition[-1].operands if name in named]
        places = [int(found[1]) for found in map(_ELEMENT.search, compared) if found]
        for name in loop.called:
            body = {line.name: line for line in self.computations.get(name, ())}
            results = [line for line in body.values() if line.line.startswith("ROOT")]
            if places and results and len(results[0].operands) > places[0]:
                counter = body.get(results[0].operands[places[0]])
                if counter is not None and counter.opcode == "add":
                    added = [body[name].line for name in counter.operands if name in body]
                    steps = [int(found[1]) for found in map(_LIMIT.search, added) if found]
                    if steps:
                        return steps[0]
        return 1


def read_program(text: str) -> Program:
    """Reads what `Compiled.as_text` gives.

    Raises:
        ValueError: the text holds no program.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = tuple(lines)
        elif name:
            instruction = _read_instruction(line)
            if instruction is not None:
                lines.append(instruction)
    if entry not in computations:
        raise ValueError("no optimised program: the text has no ENTRY")
    return Program(computations, entry)


def _read_instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if start is None:
        return None
    rest = line[start.end() :]
    end = _end_of_shape(rest)
    opcode = rest[end:].lstrip().split("(", 1)[0]
    called = [
        name.strip().lstrip("%")
        for one, several in _CALLED.findall(line)
        for name in (one or several).split(",")
    ]
    trips = _TRIPS.search(line)
    return Instruction(
        name=start[1],
        opcode=opcode,
        arrays=tuple(
            Array(dtype, tuple(int(size) for size in sizes.split(",") if size))
            for dtype, sizes in _ARRAY.findall(rest[:end])
        ),
        called=tuple(called),
        trips=int(trips[1]) if trips else None,
        line=line.strip(),
    )


def _end_of_shape(text: str) -> int:
    """Where the shape at the start of the text ends: the first space outside of parentheses."""
    depth = 0
    for i, letter in enumerate(text):
        if letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == " " and not depth:
            return i
    return len(text)


def _collective(kind: str, line: Instruction, times: int, in_loop: bool) -> Collective:
    sizes = [array.nbytes for array in line.arrays]
    if line.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # (operands, results, perhaps two counters)
        arrays = [size for array, size in zip(line.arrays, sizes, strict=True) if array.shape]
        sizes = arrays[len(arrays) // 2 :]
    return Collective(kind, sum(sizes), _group(line.line), times, in_loop, line)


def _group(line: str) -> int:
    """How many devices send each other something."""
    if listed := _GROUPS_LISTED.search(line):
        return len(listed[1].split(","))
    if counted := _GROUPS_COUNTED.search(line):
        return int(counted[2])
    if named := _GROUPS_NAMED.search(line):
        sizes = {axis: int(size) for axis, size in _AXIS_SIZE.findall(named[1])}
        return math.prod(sizes[axis.strip(" '")] for axis in named[2].split(","))
    return 1  # collective-permute: in pairs
