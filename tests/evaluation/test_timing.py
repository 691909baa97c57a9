"""Repeats, medians and ratios."""

import pytest

from flexdraft_jax.evaluation.timing import Spread, interleave, ratios


def test_timers_take_turns() -> None:
    calls: list[str] = []

    def timer(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = interleave({"a": lambda: timer("a"), "b": lambda: timer("b")}, repeats=3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert values == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats=0: must be at least 1"):
        interleave({}, repeats=0)


def test_ratios_are_taken_pair_by_pair() -> None:
    # A machine twice as slow in the second pair changes no ratio.
    assert ratios([6.0, 12.0], [2.0, 4.0]) == Spread(3.0, 3.0, 3.0)


def test_spread_is_written_with_its_ends() -> None:
    assert f"{Spread.of([3.0, 1.0, 2.0]):.1f}" == "2.0 (1.0-3.0)"
