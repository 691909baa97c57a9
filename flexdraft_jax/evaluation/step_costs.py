"""What one decoding step costs, as a multiple of a plain step; and the profile that flex asks."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.costs import NEXT_TO_NOTHING, StepCosts, Variant, flex_buckets
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sizes import Sizes
from flexdraft_jax.evaluation.programs import forget_programs_if_many
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import Progress, Spread, interleave, ratios, silent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import mesh_of, row_devices


@dataclasses.dataclass(frozen=True)
class StepVariant:
    """A step to measure.

    Attributes:
        schedule: "ar" drafts nothing, "parallel" and "sequential" draft the next block.
        block_size: n; 1 where nothing is ever drafted.
        num_drafts: how many the step verifies; n - 1 if None.
        draws: whether tokens are drawn at random, at temperature 1.
    """

    schedule: str
    block_size: int
    num_drafts: int | None = None
    draws: bool = False

    @property
    def compiled(self) -> Variant:
        """The step of the decoder."""
        count = self.block_size - 1 if self.num_drafts is None else self.num_drafts
        return Variant(self.schedule, count)


PLAIN_STEP = StepVariant("ar", 1)
_DRAWN = "a whole block, drawn at random"
# Of the cache, where nobody says for which prompts.
STEP_SLOTS = 256
# Of a call of `StepTimer` that is told nothing else.
_CALL_SECONDS, _FEWEST_STEPS, _MOST_STEPS = 0.1, 8, 64


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What one decoding step costs.

    Attributes:
        batch_size: B.
        schedule: of the step.
        block_size: n; the step verifies n - 1 drafts.
        milliseconds: per step.
        ratio: to a plain step at the same batch size. A tau above it is a gain.
    """

    batch_size: int
    schedule: str
    block_size: int
    milliseconds: Spread
    ratio: Spread


def measure_steps(
    target: Target,
    draft: Draft,
    variants: Sequence[StepVariant],
    *,
    batch_sizes: Sequence[int] = (1,),
    num_slots: int = STEP_SLOTS,
    num_steps: int | None = None,
    repeats: int = 5,
    progress: Progress = silent,
) -> list[StepRow]:
    """Times steps inside the compiled loop; the variants of a batch size take turns.

    Args:
        target: the model.
        draft: its draft.
        variants: to measure beside the plain step, which is always there.
        batch_sizes: B, one after the other.
        num_slots: S of the cache, the same for all.
        num_steps: in one call of the loop; see `StepTimer`.
        repeats: of every measurement.
        progress: told about each batch size.

    Raises:
        ValueError: a cache without room, or `repeats` under 1.
    """
    variants = list(dict.fromkeys([PLAIN_STEP, *variants]))
    check_room([variant.block_size for variant in variants], [num_slots])
    rows = []
    for batch_size in batch_sizes:
        progress(f"step costs, batch {batch_size}")
        forget_programs_if_many()
        timers = {
            str(variant): StepTimer(target, draft, variant, batch_size, num_slots, num_steps)
            for variant in variants
        }
        times = interleave(timers, repeats)
        plain = times[str(PLAIN_STEP)]
        rows += [
            StepRow(
                batch_size,
                variant.schedule,
                variant.block_size,
                milliseconds=Spread.of([1e3 * t for t in times[str(variant)]]),
                ratio=ratios(times[str(variant)], plain),
            )
            for variant in variants
        ]
    return rows


def measure_costs(
    target: Target,
    draft: Draft,
    *,
    block_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    slot_counts: Sequence[int] = (STEP_SLOTS,),
    num_steps: int | None = None,
    repeats: int = 5,
    progress: Progress = silent,
) -> Iterator[StepCosts]:
    """Times every part of the steps that flex chooses from; those of one size take turns.

    Args:
        target: the model.
        draft: its draft.
        block_sizes: n.
        batch_sizes: B, of all devices of a mesh, filled up until it divides among them.
        slot_counts: S of the cache.
        num_steps: in one call of the loop; see `StepTimer`.
        repeats: of every measurement; their median counts.
        progress: told about each size.

    Yields:
        Costs of one size after the other.

    Raises:
        ValueError: a cache without room, or `repeats` under 1.
    """
    check_room(block_sizes, slot_counts)
    parts = row_devices(mesh_of(target.params))
    rows_of_device = dict.fromkeys(-(-batch_size // parts) for batch_size in batch_sizes)
    for block_size, rows, num_slots in itertools.product(block_sizes, rows_of_device, slot_counts):
        batch_size = rows * parts
        progress(f"step costs, n = {block_size}, batch {batch_size}, {num_slots} cache slots")
        forget_programs_if_many()
        buckets = flex_buckets(block_size)
        largest = Variant("sequential", block_size - 1)
        variants = [Variant("ar", 0), *(Variant("ar", count) for count in buckets), largest]
        variants += [Variant("parallel", count) for count in buckets]
        measured = {
            str(variant): StepVariant(variant.schedule, block_size, variant.num_drafts)
            for variant in variants
        }
        measured[_DRAWN] = StepVariant("ar", block_size, draws=True)
        timers = {
            name: StepTimer(target, draft, variant, batch_size, num_slots, num_steps)
            for name, variant in measured.items()
        }
        times = interleave(timers, repeats)
        ms = {variant: 1e3 * statistics.median(times[str(variant)]) for variant in variants}
        without = times[str(Variant("ar", block_size - 1))]
        drafting = [a - b for a, b in zip(times[str(largest)], without, strict=True)]
        drawing = [a - b for a, b in zip(times[_DRAWN], without, strict=True)]
        yield StepCosts(
            block_size,
            rows,
            num_slots,
            verify={count: ms[Variant("ar", count)] for count in (0, *buckets)},
            # Noise can make a tiny difference negative.
            draft=max(1e3 * statistics.median(drafting), NEXT_TO_NOTHING),
            parallel={count: ms[Variant("parallel", count)] for count in buckets},
            draw=max(1e3 * statistics.median(drawing) / block_size, NEXT_TO_NOTHING),
        )


def costs_table(costs: Sequence[StepCosts], title: str) -> Table:
    """Costs of one block size for people, one line for each size of batch and cache.

    Args:
        costs: at least one, all of the same n.
        title: of the table.
    """
    buckets = flex_buckets(costs[0].block_size)

    def line(c: StepCosts) -> tuple[str, ...]:
        parts = [*(c.verify[v] for v in buckets), c.draft, c.draw]
        parts += (c.parallel[v] for v in buckets)
        relative = (f"{part / c.verify[0]:.2f}" for part in parts)
        return (str(c.batch_size), str(c.num_slots), f"{c.verify[0]:.2f}", *relative)

    return Table(
        title=title,
        columns=(
            "rows of a device",
            "cache slots",
            "plain step, ms",
            *(f"verify {v}" for v in buckets),
            "draft",
            "draw",
            *(f"parallel {v}" for v in buckets),
        ),
        rows=[line(c) for c in costs],
        note=f"n = {costs[0].block_size}. In plain steps from the fourth column on; a sequential "
        "step is a verify pass and a draft pass. Each candidate and each draft takes one draw more "
        "where tokens are drawn at random.",
    )


def check_room(block_sizes: Sequence[int], slot_counts: Sequence[int]) -> None:
    """Raises ValueError for the first cache with less room than two blocks."""
    for block_size, num_slots in itertools.product(block_sizes, slot_counts):
        if num_slots < 2 * block_size:
            raise ValueError(
                f"num_slots={num_slots}: must be at least 2 * block_size={2 * block_size}"
            )


class StepTimer:
    """Seconds per step, from many steps inside one call of the compiled loop.

    What a step costs depends on shapes alone, so any prompt will do. The loop returns early where
    acceptance fills the cache; the time is divided by the steps that were made.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | None,
        variant: StepVariant,
        batch_size: int,
        num_slots: int,
        num_steps: int | None,
    ) -> None:
        """Compiles and warms up.

        Args:
            target: the model.
            draft: its draft; not used where n is 1.
            variant: the step.
            batch_size: B.
            num_slots: S of the cache; the cost of a step grows with it.
            num_steps: steps in one call; as many as take a tenth of a second, but not fewer than
                8 and not more than 64, if None. The first steps of a call are slower than the
                rest, by a third where they are short, and those of an answer are many.

        Raises:
            ValueError: a cache with less room than two blocks.
        """
        block_size = variant.block_size
        check_room([block_size], [num_slots])
        row = Request(
            prompt=(0,),
            max_new_tokens=num_slots - block_size,
            confidence_threshold=0.0,
            temperature=float(variant.draws),
        )
        decoding = start(
            target,
            draft,
            [row] * batch_size,
            "ar" if block_size == 1 else "sequential",
            None if block_size == 1 else block_size,
            sizes=Sizes(prompt=8, slots=num_slots, max_slots=num_slots),
        )
        program = dataclasses.replace(decoding.program, variants=(variant.compiled,))
        self._decoding = dataclasses.replace(decoding, program=program)
        self._num_steps = num_steps or _FEWEST_STEPS
        self()
        if num_steps is None:
            wanted = int(_CALL_SECONDS / self())
            self._num_steps = min(max(wanted, _FEWEST_STEPS), _MOST_STEPS)

    def __call__(self) -> float:
        # The loop takes its state away (it is donated), and copying is no part of a step.
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self._decoding.state))
        decoding = dataclasses.replace(self._decoding, state=state)
        start_time = time.perf_counter()
        decoding.run(self._num_steps)
        jax.block_until_ready(decoding.state)
        elapsed = time.perf_counter() - start_time
        return elapsed / int(jnp.max(decoding.state.num_steps))

    def program_text(self) -> str:
        """The optimised program, by whose instructions a profiler calls what it saw."""
        text = self._decoding.lowered(self._decoding.state).compile().as_text()
        assert text is not None  # Of what `jit` has compiled there always is one.
        return text
