"""A batch of rows between two calls of the compiled programs."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flexdraft_jax.decoding.costs import CostModel, Profile
from flexdraft_jax.decoding.flex import FlexCosts
from flexdraft_jax.decoding.loop import admit, first_state, read_prompt_chunk, run
from flexdraft_jax.decoding.memory import Work, check_memory
from flexdraft_jax.decoding.program import (
    DecodeProgram,
    Variables,
    choose_program,
    groups_at,
    program_for,
)
from flexdraft_jax.decoding.requests import Request, check_settings
from flexdraft_jax.decoding.rows import (
    GenerateOutput,
    nan_message,
    padded,
    read_output,
    row_settings,
)
from flexdraft_jax.decoding.sharing import check_mesh, fill_up
from flexdraft_jax.decoding.sizes import Sizes, prompt_chunk, sizes_for, slot_bucket
from flexdraft_jax.decoding.state import RUNNING, DecodeState, resize, resized_shapes
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.flexdraft import flexdraft_variables
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import row_devices
from flexdraft_jax.parallel.processes import gather_results, to_host

# More steps than any row can take: each emits at least one token.
ALL_STEPS = np.iinfo(np.int32).max
_ALL_ROWS = slice(None)
# Sizes of the cache that are compiled for ahead, the present one among them.
_SIZES_AHEAD = 4


@dataclasses.dataclass
class Decoding:
    """A batch between two calls of the compiled programs.

    Attributes:
        program: what is compiled.
        variables: target and draft parameters.
        state: donated to, and replaced by, every call.
        sizes: that it was begun with.
        drawing: the program's sampling once there are rows with a temperature: "coupled" or
            "rejection".
        cost_model: what flex chooses by; None where a fixed schedule leaves no choice.
        refilled: whether rows that end make place for others.
        wanted: rows whose answers are given out; the others fill up the batch, or belong to
            another process.
        told: programs that `progress` was told of, with their cache sizes.
        progress: told what is about to be compiled.
    """

    program: DecodeProgram
    variables: Variables
    state: DecodeState
    sizes: Sizes
    drawing: str
    cost_model: CostModel | None
    refilled: bool
    wanted: slice
    told: set[tuple[DecodeProgram, int]] = dataclasses.field(default_factory=set)
    progress: Callable[[str], None] | None = None

    @property
    def num_slots(self) -> int:
        """S, of the cache as it is now."""
        return self.state.cache.num_slots

    @property
    def num_running(self) -> int:
        """How many rows decode; waits for the device."""
        return int(np.sum(to_host(self.state.finish_reason) == RUNNING))

    def flex_costs(self, state: DecodeState) -> FlexCosts | None:
        """What flex chooses by at the state's sizes; None for a fixed schedule."""
        if self.cost_model is None:
            return None
        rows = len(state.length) // row_devices(self.program.mesh)  # Of one device.
        costs = self.cost_model.at(rows, state.cache.num_slots)
        draws = self.program.sampling != "greedy"
        # Of NumPy, so that they belong to no device of a mesh.
        of_each: Any = np.array(
            [costs.of(variant, draws) for variant in self.program.variants], np.float32
        )
        refilled: Any = np.array(self.refilled)
        return FlexCosts(of_each, refilled)

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Reads the prompts of all rows; all end in the last call, so that all begin together."""
        size = self.sizes.prompt
        num_calls = -(-max(map(len, prompts)) // size)
        for behind in range((num_calls - 1) * size, -1, -size):
            ends = [max(0, len(prompt) - behind) for prompt in prompts]
            parts = [p[max(0, end - size) : end] for p, end in zip(prompts, ends, strict=True)]
            self.read(None, parts, [behind == 0] * len(prompts))

    def read(
        self, rows: Sequence[int] | None, parts: Sequence[Sequence[int]], last: Sequence[bool]
    ) -> None:
        """Reads a part of the prompts of some rows.

        Args:
            rows: which, or B for none; None for all of them.
            parts: up to P tokens of each.
            last: whether the prompt of each ends with them.
        """
        self._tell(self.num_slots)
        self.state = read_prompt_chunk(*self._reading(self.state, rows, parts, last))

    def admit(self, places: Sequence[int], requests: Sequence[Request]) -> None:
        """Starts rows over with other requests.

        Args:
            places: of these rows.
            requests: of all B rows; those of other rows that read or run are what they were.
        """
        num_rows, num_stops = self.state.stop_token_ids.shape
        self.program = program_for(self.program, requests, self.drawing)
        self.state = admit(
            self.program.model.config,
            self.program.block_size,
            self.program.mesh,
            self.state,
            np.isin(np.arange(num_rows), places),
            **row_settings(requests, num_stops),
        )

    def advance(self, max_steps: int = ALL_STEPS, min_active: int = 1) -> None:
        """Decodes for `max_steps` more, or until fewer than `min_active` rows are running."""
        while max_steps > 0:
            done, full = self.run(max_steps, min_active)
            max_steps -= done
            if not full:
                return
            self.resize(self._next_size(self.num_slots))

    def run(self, max_steps: int, min_active: int = 1) -> tuple[int, bool]:
        """One call of the compiled loop: how many steps, and whether it takes a larger cache."""
        self._tell(self.num_slots)
        self.state, *ended = run(*self._running(self.state, max_steps, min_active))
        done, full = jax.device_get(ended)
        return int(done), bool(full)

    def resize(self, num_slots: int) -> None:
        """Gives every row this many cache slots; no row may hold more tokens."""
        self.state = resize(self.state, num_slots)

    def _tell(self, num_slots: int) -> None:
        """Says so where programs are to be compiled for this many cache slots."""
        if self.progress is None or (self.program, num_slots) in self.told:
            return
        self.told.add((self.program, num_slots))
        draws = "" if self.program.sampling == "greedy" else ", at temperature > 0"
        num_rows = len(self.state.length)
        self.progress(f"compiling for {num_rows} rows of {num_slots} tokens{draws}")

    def compile_ahead(self, num_slots: int, row_counts: Sequence[int] = ()) -> None:
        """Compiles the programs for the present cache size and the next three.

        More would take long, and often for nothing: a row may end long before its budget.

        Args:
            num_slots: S, of the largest size to compile for.
            row_counts: rows of the calls of `read` that will come, if any.
        """
        size = self.num_slots
        for _ in range(_SIZES_AHEAD):
            self._tell(size)
            state = resized_shapes(self.state, size)
            self.lowered(state).compile()
            for count in row_counts:
                nothing: list[list[int]] = [[]] * count
                reading = self._reading(state, [0] * count, nothing, [False] * count)
                read_prompt_chunk.lower(*reading).compile()
            if size >= num_slots:
                return
            size = self._next_size(size)

    def lowered(self, state: DecodeState) -> jax.stages.Lowered:
        """The loop for arrays, or shapes, like these, for any limits of `run`."""
        return run.lower(*self._running(state, 1, 1))

    def _next_size(self, num_slots: int) -> int:
        larger = slot_bucket(num_slots + 1, self.sizes.max_slots)
        assert larger > num_slots
        return larger

    def _running(self, state: DecodeState, max_steps: int, min_active: int) -> tuple[Any, ...]:
        """The arguments of `run`."""
        limits = np.int32(max_steps), np.int32(min_active)
        return self.program, self.variables, state, *limits, self.flex_costs(state)

    def _reading(
        self,
        state: DecodeState,
        rows: Sequence[int] | None,
        parts: Sequence[Sequence[int]],
        last: Sequence[bool],
    ) -> tuple[Any, ...]:
        """The arguments of `read_prompt_chunk`."""
        return (
            self.program.for_prefill(),
            self.variables,
            state,
            None if rows is None else np.array(rows, np.int32),
            padded(parts, 0, self.sizes.prompt),
            np.array([len(part) for part in parts], np.int32),
            np.array(last),
        )

    def updates(self, steps_per_update: int) -> Iterator[GenerateOutput]:
        """All that has been emitted, after prefill and after every `steps_per_update` steps."""
        # So that nobody waits for it in the middle of a text.
        self.compile_ahead(self.sizes.max_slots)
        yield self.output()
        while RUNNING in to_host(self.state.finish_reason):  # Of all processes' rows.
            self.advance(steps_per_update)
            yield self.output()

    def output(self) -> GenerateOutput:
        """All that has been emitted so far; waits for the device.

        Raises:
            FloatingPointError: the target's logits were NaN, so that there is no next token.
        """
        out = self.rows()
        for row, (tokens, reason) in enumerate(zip(out.tokens, out.finish_reasons, strict=True)):
            if reason == "error":
                raise FloatingPointError(f"row {row}: {nan_message(tokens)}")
        return out

    def rows(self) -> GenerateOutput:
        """The same, but a row without a next token is finished with the reason "error"."""
        return read_output(self.state, self.wanted)


def start(
    target: Target,
    draft: Draft | None,
    requests: Sequence[Request],
    schedule: str,
    block_size: int | None = None,
    pruning_strategy: str = "cumulative_product",
    sizes: Sizes | None = None,
    sampling: str = "coupled",
    profile: Profile | str | os.PathLike[str] | None = None,
    attention: str = "reference",
    forced_acceptance: float | None = None,
    wanted: slice | None = None,
) -> Decoding:
    """Compiles what isn't compiled yet and reads the prompts of checked requests.

    Args:
        target: the model.
        draft: its draft, or None to decode plainly.
        requests: from `check_requests`, one per row.
        schedule: as for `generate`.
        block_size: n; the draft's own if None.
        pruning_strategy: "cumulative_product" or "min_confidence".
        sizes: to compile for, where several calls are to share a program; those of `sizes_for` if
            None.
        sampling: "coupled" or "rejection".
        profile: as for `generate`.
        attention: likewise.
        forced_acceptance: for timing alone, see `DecodeProgram`.
        wanted: see `Decoding`; all of them if None.

    Raises:
        ValueError: settings that `check_settings` refuses, a file that is no profile, or more
            than fits into memory.
    """
    block_size = check_settings(
        target, draft, schedule, block_size, pruning_strategy, sampling, attention
    )
    draft = None if schedule == "ar" else draft
    mesh = check_mesh(target, draft)
    rows = fill_up(requests, mesh)
    given, sizes = sizes, sizes or sizes_for(rows, block_size)
    program, cost_model = choose_program(
        target,
        draft,
        schedule,
        block_size,
        pruning_strategy,
        sampling,
        profile,
        batch_size=len(rows),
        num_slots=sizes.slots,
        attention=attention,
        mesh=mesh,
        verify_all=all(r.confidence_threshold == 0 for r in requests),
    )
    program = dataclasses.replace(program, forced_acceptance=forced_acceptance)
    longest = max(len(r.prompt) for r in requests)

    def work(batch_size: int) -> Work:
        return Work(
            block_size=block_size,
            num_groups=groups_at(program, cost_model, batch_size, sizes.slots),
            chunk=given.prompt if given else prompt_chunk(longest, batch_size),
            draws=any(r.temperature > 0 for r in requests),
        )

    check = functools.partial(check_memory, target, draft, work, len(rows), sizes.max_slots)
    gather_results(mesh, check)  # Each process knows its own devices.
    wanted = slice(len(requests)) if wanted is None else wanted
    decoding = begin(target, draft, program, rows, sizes, cost_model, wanted=wanted)
    decoding.read_prompts([request.prompt for request in rows])
    return decoding


def begin(
    target: Target,
    draft: Draft | None,
    program: DecodeProgram,
    requests: Sequence[Request],
    sizes: Sizes,
    cost_model: CostModel | None,
    refilled: bool = False,
    wanted: slice = _ALL_ROWS,
) -> Decoding:
    """A batch of checked requests of which nothing is read yet.

    Args:
        target: the model.
        draft: its draft, if the program drafts.
        program: with the sampling of rows that have a temperature.
        requests: one per row, so many that they divide among the devices that rows lie on.
        sizes: to compile for.
        cost_model: see `Decoding`, like the next two.
        refilled: whether rows that end make place for others.
        wanted: rows whose answers are given out.
    """
    state = first_state(program, sizes.slots, target.dtype, row_settings(requests))
    drawing = program.sampling
    program = program_for(dataclasses.replace(program, sampling="greedy"), requests, drawing)
    variables = flexdraft_variables(target, draft)
    return Decoding(program, variables, state, sizes, drawing, cost_model, refilled, wanted)
