"""Where the time of a step goes: a profile of it, by parts, beside what the parts compute and read.

Operations of a profile bear the names of the compiled program's instructions, and these carry the
scopes of `StepPart`. What XLA fuses counts where its last operation belongs.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from flexdraft_jax.decoding.costs import FIXED_SCHEDULES
from flexdraft_jax.evaluation.step_costs import StepTimer, StepVariant, check_room
from flexdraft_jax.evaluation.tables import Table, percent
from flexdraft_jax.evaluation.timing import Progress, measure_peaks, silent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.scopes import StepPart
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.devices import Device
from flexdraft_jax.planning.hlo import Instruction, Program, read_program
from flexdraft_jax.planning.roofline import DecodeWork, MeshParts, StepWork

_CONTAINERS = ("while", "conditional", "call")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_LAYER = re.compile(r"layers_\d+")
_NUMBER = re.compile(r"[.\d]+$")  # At the end of an instruction's name.
_PARTS = frozenset(part.value for part in StepPart)


@dataclass(frozen=True)
class Event:
    """One run of an instruction.

    Attributes:
        name: of the instruction.
        start: in nanoseconds.
        end: likewise.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Place:
    """Where an instruction comes from.

    Attributes:
        part: None for what belongs to no part.
        label: the scopes within it, the same for all layers.
    """

    part: StepPart | None
    label: str


@dataclass(frozen=True)
class Operation:
    """Instructions of one place, in one step.

    Attributes:
        place: of all of them.
        times: how many there are.
        seconds: of all of them.
    """

    place: Place
    times: int
    seconds: float


@dataclass(frozen=True)
class StepTrace:
    """What a profile says of a step.

    Attributes:
        untraced: seconds of a step without the profiler.
        seconds: of a step under it: operations, and what lies between them.
        operations: the longest first.
        work: what the parts compute and read, by count.
    """

    untraced: float
    seconds: float
    operations: tuple[Operation, ...]
    work: Mapping[StepPart, StepWork]

    def of(self, part: StepPart | None) -> float:
        """Seconds of a part; None is what belongs to no part."""
        return sum(o.seconds for o in self.operations if o.place.part is part)


def trace_step(
    target: Target,
    draft: Draft,
    step: StepVariant,
    directory: str | os.PathLike[str],
    *,
    batch_size: int,
    num_slots: int,
    num_steps: int | None,
    repeats: int,
) -> StepTrace:
    """Profiles one step.

    Args:
        target: the model.
        draft: its draft.
        step: to profile.
        directory: for the profile, which TensorBoard and XProf show.
        batch_size: B.
        num_slots: S of the cache.
        num_steps: in the profile; None as for `StepTimer`.
        repeats: of the measurement without a profiler; their median counts.

    Raises:
        ValueError: a cache without room, or as for `read_events`.
    """
    timer = StepTimer(target, draft, step, batch_size, num_slots, num_steps)
    untraced = statistics.median(timer() for _ in range(repeats))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Its own calls would be most of the file.
    with jax.profiler.trace(directory, profiler_options=options):
        timer()
    text = timer.program_text()
    seconds, operations = summarise(read_program(text), read_events(directory, _module(text)))
    count = DecodeWork(
        target.config, draft.config, step.block_size, target.dtype, MeshParts(), num_slots
    )
    return StepTrace(untraced, seconds, operations, count.by_part(step.compiled, batch_size))


def read_events(directory: str | os.PathLike[str], module: str) -> list[Event]:
    """Operations of a program in the newest profile under a directory, on one device.

    Raises:
        ValueError: there is no profile, or none of the operations are in it.
    """
    files = Path(directory).rglob("*.xplane.pb")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(f"{os.fspath(directory)}: the profiler has written no *.xplane.pb here")
    planes = list(jax.profiler.ProfileData.from_file(str(newest)).planes)
    # A CPU's operations are among what the host does; an accelerator's have planes of their own.
    for plane in sorted(planes, key=lambda plane: not plane.name.startswith("/device:")):
        found = []
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and "hlo_op" in stats:
                    end = event.start_ns + event.duration_ns
                    found.append(Event(str(stats["hlo_op"]), event.start_ns, end))
        if found:
            return found
    raise ValueError(f"{newest}: the profiler names no operation of {module} on this device")


def summarise(program: Program, events: Iterable[Event]) -> tuple[float, tuple[Operation, ...]]:
    """Seconds of a step, and its operations.

    Args:
        program: that decodes in a loop.
        events: of a call of it; those of the entry computation, around the loop, are left out.
    """
    places = find_places(program)
    events = [event for event in events if event.name in places]
    counts = Counter(event.name for event in events)
    steps = statistics.mode(counts.values())
    wall = max(e.end for e in events) - min(e.start for e in events)
    seconds: dict[Place, float] = defaultdict(float)
    times: Counter[Place] = Counter()
    for name, nanoseconds in shared_time(events).items():
        seconds[places[name]] += 1e-9 * nanoseconds / steps
        times[places[name]] += counts[name]
    operations = [Operation(p, round(times[p] / steps), s) for p, s in seconds.items()]
    operations.sort(key=lambda operation: -operation.seconds)
    return 1e-9 * wall / steps, tuple(operations)


def shared_time(events: Sequence[Event]) -> dict[str, float]:
    """Nanoseconds of each instruction. Those that run at once share that time among them."""
    moments: list[tuple[float, int, str]] = []
    for event in events:
        if event.end > event.start:
            moments += [(event.start, 1, event.name), (event.end, -1, event.name)]
    shares: dict[str, float] = defaultdict(float)
    running: Counter[str] = Counter()
    before = 0.0
    for moment, change, name in sorted(moments):
        number = running.total()
        for other, times in running.items():
            shares[other] += times * (moment - before) / number
        running[name] += change
        if not running[name]:
            del running[name]
        before = moment
    return dict(shares)


def find_places(program: Program) -> dict[str, Place]:
    """Of the instructions outside of the entry computation, which is the loop.

    Those that only run others are left out.
    """
    places: dict[str, Place] = {}
    for name, lines in program.computations.items():
        if name == program.entry:
            continue
        named = {line.name: line for line in lines}
        for line in lines:
            if line.opcode not in _CONTAINERS:
                places[line.name] = _place(line, named, program)
    return places


def _place(line: Instruction, named: Mapping[str, Instruction], program: Program) -> Place:
    source = line
    while not (scopes := _scopes(source, program)):
        # What the compiler has made by itself belongs where the first array that it takes does.
        taken = [named[name] for name in source.operands if name in named]
        if not taken:
            return Place(None, _NUMBER.sub("", line.name))
        source = taken[0]
    # The last one is the operation.
    last = max((i for i, scope in enumerate(scopes) if scope in _PARTS), default=None)
    part = None if last is None else StepPart(scopes[last])
    within = scopes[-2:] if last is None else scopes[last + 1 :]
    label = "/".join(within) if source is line else _NUMBER.sub("", line.name)
    return Place(part, _LAYER.sub("layers", label))


def _scopes(line: Instruction, program: Program) -> list[str]:
    """Of an instruction, or of what is fused in it; none where the compiler has made it."""
    inner = [i for name in line.called for i in program.computations.get(name, ())]
    found = (_OP_NAME.search(i.line) for i in (line, *reversed(inner)))
    return next((path[1].split("/") for path in found if path and "/" in path[1]), [])


def _module(text: str) -> str:
    """Name of a program: "HloModule jit_run, is_scheduled=true, ..."."""
    return text.split(maxsplit=2)[1].rstrip(",")


def trace_tables(
    target: Target,
    draft: Draft,
    directory: str | os.PathLike[str],
    *,
    block_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    slot_counts: Sequence[int] = (256,),
    num_steps: int | None = None,
    repeats: int = 5,
    progress: Progress = silent,
) -> Iterator[Table]:
    """Traces the schedules' steps at every size, and says where their time goes.

    Args:
        target: the model.
        draft: its draft.
        directory: of the profiles, and in the end of tables.md with what was yielded.
        block_sizes: n.
        batch_sizes: B.
        slot_counts: S of the cache.
        num_steps: in a profile; None as for `StepTimer`.
        repeats: of the measurement without a profiler; their median counts.
        progress: told about each step.

    Yields:
        Two tables for each step: its parts, and its longest operations.

    Raises:
        ValueError: a cache without room, or as for `read_events`.
    """
    check_room(block_sizes, slot_counts)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    peaks = measure_peaks(target.dtype)
    tables: list[Table] = []
    for n, batch_size, num_slots in itertools.product(block_sizes, batch_sizes, slot_counts):
        for schedule in FIXED_SCHEDULES:
            size = f"{schedule}, n = {n}, batch {batch_size}, {num_slots} cache slots"
            progress(f"trace, {size}")
            trace = trace_step(
                target,
                draft,
                StepVariant(schedule, n, 0 if schedule == "ar" else None),
                directory / f"{schedule}_n{n}_batch{batch_size}_slots{num_slots}",
                batch_size=batch_size,
                num_slots=num_slots,
                num_steps=num_steps,
                repeats=repeats,
            )
            tables += [
                parts_table(trace, peaks, f"Parts of a step: {size}"),
                operations_table(trace, f"Longest operations: {size}"),
            ]
            yield from tables[-2:]
    (directory / "tables.md").write_text("\n".join(table.to_markdown() for table in tables))


def parts_table(trace: StepTrace, peaks: Device, title: str) -> Table:
    """Where a step's time goes, for people.

    Args:
        trace: of a step.
        peaks: of the device that it ran on.
        title: of the table.
    """

    def row(name: str, seconds: float, work: StepWork | None = None) -> tuple[str, ...]:
        rates = ["-"] * 4
        if work is not None and seconds:
            flops, traffic = work.flops / seconds, work.traffic / seconds
            rates = [f"{flops / 1e9:.1f}", percent(flops / peaks.flops)]
            rates += [f"{traffic / 1e9:.1f}", percent(traffic / peaks.bandwidth)]
        return (name, f"{1e3 * seconds:.3f}", percent(seconds / trace.seconds), *rates)

    parts = [
        row(part.value.replace("_", " "), trace.of(part), trace.work.get(part))
        for part in StepPart
        if trace.of(part) or part in trace.work
    ]
    other = trace.of(None)
    between = trace.seconds - sum(operation.seconds for operation in trace.operations)
    whole = sum(trace.work.values(), StepWork((), ()))
    return Table(
        title=title,
        columns=("part", "ms", "share", "GFLOP/s", "of peak", "GB/s", "of bandwidth"),
        rows=[
            *parts,
            row("other operations", other),
            row("between operations", between),
            row("step", trace.seconds, whole),
        ],
        note=f"Without the profiler a step takes {1e3 * trace.untraced:.3f} ms. Peaks measured "
        f"here: {peaks.flops / 1e9:.1f} GFLOP/s, {peaks.bandwidth / 1e9:.1f} GB/s. Counted are "
        "matrices and the cache; weights that fit into a processor's cache are read faster.",
    )


def operations_table(trace: StepTrace, title: str, number: int = 12) -> Table:
    """The operations that take longest, the same operation of all layers together.

    Args:
        trace: of a step.
        title: of the table.
        number: of lines.
    """
    return Table(
        title=title,
        columns=("operation", "part", "times", "ms", "share"),
        rows=[
            (
                o.place.label,
                "-" if o.place.part is None else o.place.part.value.replace("_", " "),
                str(o.times),
                f"{1e3 * o.seconds:.3f}",
                percent(o.seconds / trace.seconds),
            )
            for o in trace.operations[:number]
        ],
    )
