"""Repeats, medians and ratios."""

import functools

import pytest

from flexdraft_jax.evaluation.timing import Spread, interleave, ratios


def test_timers_take_turns() -> None:
    calls: list[str] = []

    def timer(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = interleave({name: functools.partial(timer, name) for name in "abc"}, repeats=20)
    repeats = [calls[i : i + 3] for i in range(0, 60, 3)]
    assert all(sorted(repeat) == ["a", "b", "c"] for repeat in repeats)
    assert len({*map(tuple, repeats)}) == 6  # All orders.
    for name in "abc":
        assert values[name] == [i + 1.0 for i, called in enumerate(calls) if called == name]


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats=0: must be at least 1"):
        interleave({}, repeats=0)


def test_ratios_are_taken_pair_by_pair() -> None:
    # A machine twice as slow in the second pair changes no ratio.
    assert ratios([6.0, 12.0], [2.0, 4.0]) == Spread(3.0, 3.0, 3.0)


def test_spread_is_written_with_its_ends() -> None:
    assert f"{Spread.of([3.0, 1.0, 2.0]):.1f}" == "2.0 (1.0-3.0)"
