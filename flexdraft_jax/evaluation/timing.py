"""Times that can be compared: interleaved repeats, medians with their spread, ratios in pairs.

And what a device does at best, to hold them against.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flexdraft_jax.models.layers import precision
from flexdraft_jax.parallel.devices import Device

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

    Each repeat has an order of its own, as what comes before a measurement may weigh on it.

    Raises:
        ValueError: `repeats` under 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    values: dict[str, list[float]] = {name: [] for name in timers}
    orders = random.Random(0)
    for _ in range(repeats):
        for name in orders.sample(list(timers), len(timers)):
            values[name].append(timers[name]())
    return values


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_peaks(dtype: DTypeLike) -> Device:
    """What this device does at best: products of square matrices, and passes over a large array.

    Args:
        dtype: of both.
    """
    sizes = (512, 1024, 2048) if jax.default_backend() == "cpu" else (2048, 4096, 8192)

    def multiply(x: jax.Array) -> jax.Array:
        return jnp.matmul(x, x, precision=precision(x.dtype))

    flops = [2 * n**3 / _shortest(multiply, jnp.full((n, n), 1 / n, dtype)) for n in sizes]
    # 256 MiB, more than caches hold. In place, or a new array's pages would be part of the time.
    large = jnp.zeros((2**28 // jnp.dtype(dtype).itemsize,), dtype)
    return Device(max(flops), 2 * large.nbytes / _shortest(lambda x: x + 1, large))


def _shortest(action: Callable[[jax.Array], jax.Array], array: jax.Array) -> float:
    """Seconds of the action on what it returned before."""
    compiled = jax.jit(action, donate_argnums=0)

    def again() -> None:
        nonlocal array
        array = jax.block_until_ready(compiled(array))

    return min(seconds(again) for _ in range(8))  # The first one compiles.


def silent(line: str) -> None:
    """A `Progress` that tells nobody."""
