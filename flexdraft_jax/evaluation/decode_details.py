"""What of a method takes calls of its own to measure: drafts, the first token, memory."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence

from flexdraft_jax.evaluation.draft_record import Rates
from flexdraft_jax.evaluation.methods import Batch, Method
from flexdraft_jax.evaluation.peak_memory import peak_bytes
from flexdraft_jax.evaluation.timing import Spread, interleave, seconds


@dataclasses.dataclass(frozen=True)
class DecodeDetails:
    """Of one method on one batch size.

    Attributes:
        acceptance: by position 1..n-1, share of the steps that accepted so many drafts, of those
            that verified so many; empty where nothing is drafted.
        accuracy: by slot 1..n-1, share of the verified drafts that are the text's token, each
            judged alone; likewise.
        first_token: milliseconds from the call to the first token of a batch.
        peak_bytes: of memory while a batch is decoded, as `peak_source` says; None if unknown.
    """

    acceptance: Rates
    accuracy: Rates
    first_token: Spread | None
    peak_bytes: int | None


def measure_details(
    methods: Sequence[Method], batches: Sequence[Batch], repeats: int
) -> dict[str, DecodeDetails]:
    """Measures all methods; they take turns where time counts.

    Args:
        methods: that have decoded the batches before, so that nothing is compiled here.
        batches: of prompts.
        repeats: of the time to the first token.

    Returns:
        By the methods' labels.
    """
    times = _first_tokens(methods, batches, repeats)
    return {method.label: _details(method, batches, times) for method in methods}


def _first_tokens(
    methods: Sequence[Method], batches: Sequence[Batch], repeats: int
) -> dict[str, list[float]]:
    """Seconds to the first token, the mean over batches, in each repeat."""

    def timer(first_token: Callable[[Batch], object]) -> Callable[[], float]:
        return lambda: seconds(lambda: [first_token(batch) for batch in batches]) / len(batches)

    timers = {m.label: timer(m.first_token) for m in methods if m.first_token is not None}
    for call in timers.values():
        call()  # Warms up: a peer may do something for the first time.
    return interleave(timers, repeats)


def _details(
    method: Method, batches: Sequence[Batch], times: Mapping[str, list[float]]
) -> DecodeDetails:
    record = None
    if method.watch is not None:
        record = functools.reduce(operator.add, map(method.watch, batches))
    first = times.get(method.label)
    return DecodeDetails(
        acceptance=record.acceptance if record else (),
        accuracy=record.accuracy if record else (),
        first_token=Spread.of([1e3 * t for t in first]) if first else None,
        peak_bytes=peak_bytes(lambda: method.decode(batches[0]), on_device=method.compiles),
    )
