"""What one decoding step costs, as a multiple of a plain step."""

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flexdraft_jax.decoding.generate import Sizes, start
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.evaluation.timing import Progress, Spread, interleave, ratios, silent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class StepVariant:
    """A step to measure.

    Attributes:
        schedule: "ar", "parallel" or "sequential".
        block_size: n; 1 for "ar". Every step verifies n - 1 drafts.
    """

    schedule: str
    block_size: int


PLAIN_STEP = StepVariant("ar", 1)


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
    num_slots: int = 256,
    num_steps: int = 64,
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
        num_steps: in one call of the loop.
        repeats: of every measurement.
        progress: told about each batch size.

    Raises:
        ValueError: a cache without room, or `repeats` under 1.
    """
    rows = []
    variants = list(dict.fromkeys([PLAIN_STEP, *variants]))
    for batch_size in batch_sizes:
        progress(f"step costs, batch {batch_size}")
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
        num_steps: int,
    ) -> None:
        """Compiles and warms up.

        Args:
            target: the model.
            draft: its draft; not used by schedule "ar".
            variant: the step.
            batch_size: B.
            num_slots: S of the cache; the cost of a step grows with it.
            num_steps: steps in one call.

        Raises:
            ValueError: a cache with less room than two blocks.
        """
        block_size = variant.block_size
        if num_slots < 2 * block_size:
            raise ValueError(
                f"num_slots={num_slots}: must be at least 2 * block_size={2 * block_size}"
            )
        row = Request(prompt=(0,), budget=num_slots - block_size, confidence_threshold=0.0)
        self._decoding = start(
            target,
            draft,
            [row] * batch_size,
            variant.schedule,
            None if variant.schedule == "ar" else block_size,
            sizes=Sizes(prompt=8, output=num_slots, slots=num_slots),
        )
        self._num_steps = num_steps
        self()

    def __call__(self) -> float:
        # The loop takes its state away (it is donated), and copying is no part of a step.
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self._decoding.state))
        decoding = dataclasses.replace(self._decoding, state=state)
        start_time = time.perf_counter()
        decoding.advance(self._num_steps)
        jax.block_until_ready(decoding.state)
        elapsed = time.perf_counter() - start_time
        return elapsed / int(jnp.max(decoding.state.num_steps))
