"""From what a person asks to a report: decoding and training on a slice that isn't there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from flexdraft_jax.checkpoints.draft import read_draft_config
from flexdraft_jax.checkpoints.paths import read_json
from flexdraft_jax.checkpoints.published import find_target
from flexdraft_jax.config import COUNT, INT32_MAX, DraftConfig, TargetConfig, check_fields
from flexdraft_jax.evaluation.timing import Progress, silent
from flexdraft_jax.models.draft import check_num_draft_layers
from flexdraft_jax.planning.compiling import Compiled, Memory, Traffic, compile_program
from flexdraft_jax.planning.decode_plan import (
    DecodeCase,
    DecodeStep,
    lower_step,
    steps_of,
)
from flexdraft_jax.planning.report import PlanReport, decode_report, train_report
from flexdraft_jax.planning.roofline import CHIPS
from flexdraft_jax.planning.topology import parse_slice, slice_mesh
from flexdraft_jax.planning.train_plan import TrainCase, lower_train_step
from flexdraft_jax.training.config import TrainDraftConfig


@dataclass(frozen=True)
class DecodePlan:
    """What to plan.

    Attributes:
        target: a directory, a config.json or a name of `TARGETS`.
        topology: of the slice: "v5e:2x4".
        mesh: "data=2,tensor=4".
        batch_size: B.
        num_slots: S.
        draft: a directory; None for the next two.
        draft_layers: D.
        calibration_rank: r.
        block_size: n; the draft's own if None, or 16.
        dtype: of weights and cache.
    """

    target: str
    topology: str
    mesh: str
    batch_size: int = 32
    num_slots: int = 2048
    draft: str | None = None
    draft_layers: int = 5
    calibration_rank: int = 1024
    block_size: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_fields(self, batch_size=COUNT, num_slots=COUNT, block_size=(2, INT32_MAX))

    def draft_config(self, target: TargetConfig) -> DraftConfig:
        """The draft's shape.

        Raises:
            ValueError: it does not fit the target.
        """
        if self.draft is not None:
            return read_draft_config(self.draft, target)
        draft = DraftConfig(self.draft_layers, self.block_size or 16, self.calibration_rank)
        check_num_draft_layers(draft, target)
        return draft


@dataclass(frozen=True)
class TrainPlan:
    """What to plan.

    Attributes:
        target: a directory, a config.json or a name of `TARGETS`.
        topology: of the slice: "v5e:16x16".
        mesh: "fsdp=256".
        config: of the run.
        sequence_length: T, tokens of a packed row.
    """

    target: str
    topology: str
    mesh: str
    config: TrainDraftConfig
    sequence_length: int = 2048

    def __post_init__(self) -> None:
        check_fields(self, sequence_length=(8, INT32_MAX))


class Unfinished(Exception):
    """As many programs were compiled as were asked for, and there are more."""


class Kept:
    """Compiled programs in a JSON file, so that a plan may be stopped and goes on."""

    def __init__(
        self, path: str | os.PathLike[str] | None, compile_at_most: int | None = None
    ) -> None:
        """Reads the file, if it is there.

        Args:
            path: of the file; None keeps nothing.
            compile_at_most: so many programs, then `Unfinished` is raised.

        Raises:
            ValueError: a file that is there is damaged.
        """
        self.next = ""  # The first that was asked for, and is neither here nor compiled.
        self._left = compile_at_most
        self._path = None if path is None else Path(path)
        self._entries: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            self._entries = read_json(self._path)

    def get(
        self, plan: DecodePlan | TrainPlan, name: str, make: Callable[[], Compiled]
    ) -> Compiled:
        """The program of this name, made now unless the same has compiled the same before."""
        of = {
            "program": name,
            "shape": dataclasses.asdict(find_target(plan.target)),
            "versions": _versions("jax", "libtpu", "flexdraft_jax"),
        }
        key = json.dumps({**of, **dataclasses.asdict(plan)}, sort_keys=True)
        if key not in self._entries:
            if self._left is not None:
                if not self._left:
                    missing = f"{name} of {plan.target} on {plan.topology}"
                    self.next = self.next or missing
                    raise Unfinished(missing)
                self._left -= 1
            self._entries[key] = dataclasses.asdict(make())
            if self._path is not None:
                unfinished = self._path.with_name(f"{self._path.name}.unfinished")
                unfinished.write_text(json.dumps(self._entries, indent=1) + "\n")
                os.replace(unfinished, self._path)
        try:
            return _read_compiled(self._entries[key])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path}: what is kept of {name} of {plan.target} is damaged ({error}); "
                "remove the file, and its programs are compiled again"
            ) from error


def _read_compiled(entry: Mapping[str, Any]) -> Compiled:
    """What was kept of a program, as the compiler's numbers alone are of use."""
    numbers = (x for x in jax.tree.leaves(entry) if isinstance(x, int | float))
    if not all(0 <= x <= sys.float_info.max for x in numbers):
        raise ValueError("a number is negative, or not finite")
    memory = Memory(**entry["memory"])
    collectives = tuple(Traffic(**one) for one in entry["collectives"])
    compiled = Compiled(**{**entry, "memory": memory, "collectives": collectives})
    for one in (compiled, memory, *collectives):
        check_fields(one)
    return compiled


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def plan_decode(
    plan: DecodePlan,
    programs: Collection[str] = (),
    all_parallel: bool = False,
    progress: Progress = silent,
    kept: Kept | None = None,
) -> tuple[PlanReport, DecodeCase]:
    """Compiles the programs of decoding one after the other.

    Args:
        plan: what to plan.
        programs: names of those to compile; the main ones if empty. "ar" is always among them, as
            the others are held against it.
        all_parallel: parallel steps of all numbers of groups among them.
        progress: told about each program.
        kept: what was compiled before; what is compiled now is added.

    Raises:
        ValueError: something that is not there or does not divide; it is named.
    """
    of = parse_slice(plan.topology)
    kept = Kept(None) if kept is None else kept
    target = find_target(plan.target)
    draft = plan.draft_config(target)
    block_size = plan.block_size or draft.block_size
    if plan.num_slots <= block_size:
        raise ValueError(f"num_slots={plan.num_slots}: must be more than block_size={block_size}")
    case = DecodeCase(
        target=target,
        draft=draft,
        mesh=slice_mesh(of, plan.mesh),
        batch_size=plan.batch_size,
        num_slots=plan.num_slots,
        block_size=block_size,
        dtype=plan.dtype,
    )
    steps = steps_of(case, CHIPS[of.generation], all_parallel or bool(programs))
    known = {step.name for step in steps}
    if not known >= set(programs):
        raise ValueError(f"programs={','.join(programs)}: must be of {', '.join(sorted(known))}")
    compiled: list[tuple[DecodeStep, Compiled]] = []
    for step in steps:
        if not programs or step.name in (*programs, "ar"):

            def make(step: DecodeStep = step) -> Compiled:
                progress(f"compiling {step.name} of {plan.target} for {of.name}")
                return compile_program(step.name, *lower_step(case, step))[0]

            compiled.append((step, kept.get(plan, step.name, make)))
    title = (
        f"{plan.target} on {of.accelerator_type} ({of.name}), {plan.mesh}: {case.batch_size} rows "
        f"of {case.num_slots} slots, n = {case.block_size}, D = {draft.num_draft_layers}, "
        f"{case.dtype}"
    )
    return decode_report(title, dataclasses.asdict(plan), case, compiled), case


def plan_train(
    plan: TrainPlan, progress: Progress = silent, kept: Kept | None = None
) -> PlanReport:
    """Compiles a training step; arguments and errors as for `plan_decode`.

    Raises:
        ValueError: something that is not there or does not divide; it is named.
    """
    of = parse_slice(plan.topology)
    config = plan.config
    kept = Kept(None) if kept is None else kept
    case = TrainCase(
        find_target(plan.target), config, slice_mesh(of, plan.mesh), plan.sequence_length
    )

    def make() -> Compiled:
        progress(f"compiling the training step of {plan.target} for {of.name}")
        return compile_program("train step", *lower_train_step(case))[0]

    compiled = kept.get(plan, "train step", make)
    title = (
        f"Training a drafter of {plan.target} on {of.accelerator_type} ({of.name}), {plan.mesh}: "
        f"{config.train.batch_size} rows of {plan.sequence_length} tokens, {config.anchors} "
        f"anchors, n = {config.model.block_size}, D = {config.model.num_draft_layers}, chunk "
        f"{config.step.chunk or 'off'}, microbatches {config.step.microbatches}, remat "
        f"{'on' if config.step.remat else 'off'}"
    )
    return train_report(title, dataclasses.asdict(plan), case, compiled)
