"""Speed, and the warning when training and decoding disagree."""

import io
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from flexdraft_jax.parallel.mesh import make_mesh
from flexdraft_jax.training import watch as module
from flexdraft_jax.training.progress import Progress
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.watch import Watch

_ROWS: Any = Rows(*[np.zeros((2, 50), np.int32)] * 4)


class _Book:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.speeds: list[dict[str, float]] = []

    def trained(self, step: int, values: dict[str, Any], speed: dict[str, float]) -> None:
        assert "row_loss" not in values
        self.speeds.append(speed)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        pass


def _watch(out: io.StringIO, book: _Book, step_flops: float = 1.0) -> Watch:
    progress = Progress(10, 0, Console(file=out))
    return Watch(progress, book, 2, make_mesh(), step_flops)  # type: ignore[arg-type]


def _metrics(expected_tau: float = 1.0) -> dict[str, Any]:
    return {
        "loss": jnp.float32(1.0),
        "expected_tau": jnp.float32(expected_tau),
        "row_loss": jnp.ones(2),
    }


def test_speed_leaves_out_compilation_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 104.0, 104.0, 110.0, 114.0, 114.0, 200.0, 205.0, 209.0, 209.0])
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "peak_flops", lambda kind: 50.0)
    book = _Book()
    watch = _watch(io.StringIO(), book, step_flops=100.0)
    monkeypatch.setattr(watch._progress, "update", lambda *args: None)
    for step in range(1, 5):
        watch.dispatched(step, _metrics(), _ROWS)
    watch.catch_up()
    watch.evaluated(4, {"held_out": 1.0}, expect=True)  # At 200 s.
    for step in (5, 6):
        watch.dispatched(step, _metrics(), _ROWS)
    watch.catch_up()
    # Steps of 4 s, 5 s and 4.5 s; each takes 2 s at the devices' peak.
    assert [round(speed["tokens_per_second"], 1) for speed in book.speeds] == [25.0, 20.0, 22.2]
    assert [round(speed["mfu"], 3) for speed in book.speeds] == [0.5, 0.4, 0.444]


def test_mfu_is_left_out_where_the_peak_is_unknown() -> None:
    book = _Book()
    watch = _watch(io.StringIO(), book)
    for step in range(1, 4):
        watch.dispatched(step, _metrics(), _ROWS)
    assert set(book.speeds[0]) == {"tokens_per_second"}


@pytest.mark.parametrize(
    ("expected", "expect", "warned"), [(4.0, True, True), (4.0, False, False), (3.0, True, False)]
)
def test_a_run_is_warned_once_it_is_warm(expected: float, expect: bool, warned: bool) -> None:
    out = io.StringIO()
    watch = _watch(out, _Book())
    watch.dispatched(1, _metrics(expected), _ROWS)
    watch.catch_up()
    watch.evaluated(1, {"tau_a": 1.5, "tau_b": 2.5, "accuracy_a": 0.1}, expect=expect)
    assert ("real tau is 2.00 where training expects 4.00" in out.getvalue()) == warned
