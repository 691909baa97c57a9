"""The cost of a step, from many steps in one call."""

import pytest

from flexdraft_jax.evaluation import step_costs
from flexdraft_jax.evaluation.step_costs import (
    StepTimer,
    StepVariant,
    costs_table,
    measure_costs,
    measure_steps,
)


def test_seconds_are_divided_by_the_steps_made(models, monkeypatch) -> None:
    timer = StepTimer(models.target, models.draft, StepVariant("ar", 1), 2, 32, num_steps=5)
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert timer() == 3.0 / 5


def test_a_full_cache_ends_the_call_and_not_the_measurement(models, monkeypatch) -> None:
    timer = StepTimer(models.target, models.draft, StepVariant("ar", 1), 1, 32, num_steps=1000)
    ticks = iter([0.0, 31.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    # 32 slots: the prompt's one token is in the first, and its answer is given before the steps.
    assert timer() == pytest.approx(31.0 / 30)


@pytest.mark.parametrize(("seconds", "num_steps"), [(1.0, 8), (0.0033, 30), (1e-6, 64)])
def test_a_call_takes_a_tenth_of_a_second_within_limits(
    models, monkeypatch, seconds, num_steps
) -> None:
    monkeypatch.setattr(StepTimer, "__call__", lambda timer: seconds)
    timer = StepTimer(models.target, models.draft, StepVariant("ar", 1), 2, 32, num_steps=None)
    assert timer._num_steps == num_steps


def test_rows_are_relative_to_the_plain_step_of_their_batch_size(models) -> None:
    rows = measure_steps(
        models.target,
        models.draft,
        [StepVariant("sequential", 4)],
        batch_sizes=(2,),
        num_slots=32,
        num_steps=4,
        repeats=2,
    )
    assert [(r.batch_size, r.schedule, r.block_size) for r in rows] == [
        (2, "ar", 1),
        (2, "sequential", 4),
    ]
    assert rows[0].ratio.low == rows[0].ratio.high == 1.0
    assert rows[1].milliseconds.low > 0


def test_every_draft_is_verified(models) -> None:
    timer = StepTimer(models.target, models.draft, StepVariant("sequential", 4), 2, 32, num_steps=4)
    timer._decoding.advance(4)
    for row in timer._decoding.output().verify_lengths:
        assert set(row) == {3}


def test_the_cache_needs_room(models) -> None:
    with pytest.raises(ValueError, match="num_slots=7: must be at least 2 \\* block_size=8"):
        StepTimer(models.target, models.draft, StepVariant("parallel", 4), 1, 7, num_steps=1)


def test_parts_of_a_step_come_from_whole_steps(models, monkeypatch) -> None:
    """A draft pass is what a step with it takes longer than the same step without."""
    seconds = {
        StepVariant("ar", 4, 0): 0.001,
        StepVariant("ar", 4, 3): 0.002,
        StepVariant("sequential", 4, 3): 0.005,
        StepVariant("parallel", 4, 3): 0.004,
        StepVariant("ar", 4, draws=True): 0.0024,
    }

    def timer(target, draft, variant, batch_size, num_slots, num_steps):
        return lambda: batch_size * seconds[variant]

    monkeypatch.setattr(step_costs, "StepTimer", timer)
    one, two = measure_costs(
        models.target, models.draft, block_sizes=[4], batch_sizes=[1, 2], slot_counts=[32]
    )
    assert (one.verify, one.draft, one.parallel) == ({0: 1.0, 3: 2.0}, pytest.approx(3.0), {3: 4.0})
    assert one.draw == pytest.approx(0.1)
    assert (two.block_size, two.batch_size, two.num_slots, two.verify[3]) == (4, 2, 32, 4.0)
    # On a mesh they are those of the rows of one device.
    monkeypatch.setattr(step_costs, "row_devices", lambda mesh: 2)
    sizes = measure_costs(models.target, models.draft, block_sizes=[4], batch_sizes=[1, 4])
    assert [costs.batch_size for costs in sizes] == [1, 2]
    table = costs_table([one, two], "Costs")
    assert table.rows[0] == ("1", "32", "1.00", "2.00", "3.00", "0.10", "4.00")
    assert len(table.columns) == 7


def test_a_timed_step_is_the_one_that_was_asked_for(models) -> None:
    timer = StepTimer(models.target, models.draft, StepVariant("ar", 4, 3), 2, 32, num_steps=4)
    assert [(v.schedule, v.num_drafts) for v in timer._decoding.program.variants] == [("ar", 3)]
    timer._decoding.advance(4)
    # It drafts nothing, so that behind the first block there is nothing to accept.
    assert all(row[1:] == [0, 0, 0] for row in timer._decoding.output().verify_lengths)
