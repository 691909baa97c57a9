"""Times that can be compared: interleaved repeats, medians with their spread, ratios in pairs."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

# Told about each part of a measurement before it starts.
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Repeats of one measurement.

    Attributes:
        median: of all repeats.
        low: the smallest.
        high: the largest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarises at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios of measurements that were taken one after the other, pair by pair.

    A machine that slows down for a while slows both of a pair.
    """
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def interleave(timers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls every timer in turn, `repeats` times over, and collects what they return.

    Raises:
        ValueError: `repeats` under 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    values: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            values[name].append(timer())
    return values


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def silent(line: str) -> None:
    """A `Progress` that tells nobody."""
