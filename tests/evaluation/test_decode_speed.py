"""Whole calls, timed in turn and compared token for token."""

import pytest

from flexdraft_jax.evaluation.decode_speed import measure_decoding
from flexdraft_jax.evaluation.decode_tables import decode_table
from flexdraft_jax.evaluation.methods import Method, schedule_method
from flexdraft_jax.evaluation.prompt_sets import same_bucket
from flexdraft_jax.evaluation.timing import Spread


def fake(name: str, answers: dict[int, list[int]], steps: list[int] | None = None) -> Method:
    """Answers a prompt by its first token, and reports the same steps for each."""

    def decode(prompts):
        return [answers[p[0]] for p in prompts], [] if steps is None else [steps for _ in prompts]

    return Method(name, 1, decode)


def test_tokens_and_tau_and_equality_are_counted() -> None:
    plain = fake("ar", {1: [5, 6], 2: [7, 8]}, steps=[1])
    other = fake("parallel", {1: [5, 6], 2: [7, 9]}, steps=[1, 3])
    peer = fake("peer", {1: [5, 6], 2: [7, 8]})
    rows = measure_decoding(
        [plain, other, peer], [[1], [2]], domain="code", batch_size=1, repeats=2
    )
    assert [row.method for row in rows] == ["ar", "parallel", "peer"]
    assert [row.tau for row in rows] == [1.0, 2.0, None]
    assert [row.num_equal for row in rows] == [2, 1, 2]
    assert rows[0].speedup.low == rows[0].speedup.high == 1.0
    assert all(row.tokens_per_second.low > 0 for row in rows)


def test_rows_that_part_at_a_near_tie_are_counted() -> None:
    plain = fake("ar", {1: [5, 6], 2: [7, 8], 3: [9, 9], 4: [5]}, steps=[1])
    other = fake("flex", {1: [5, 9], 2: [9, 8], 3: [9, 9], 4: [5]}, steps=[4, 1])
    rows = measure_decoding(
        [plain, other],
        [[1], [2], [3], [4]],
        domain="code",
        batch_size=2,
        repeats=1,
        near_ties=lambda prompt, answer: [prompt == [2], True][: len(answer)],
    )
    # 6 and 9 part at the second token, 7 and 9 at the first.
    assert [(row.num_equal, row.num_split_at_ties) for row in rows] == [(4, 0), (2, 2)]
    assert rows[0].near_ties == 4 / 7
    (equal,) = decode_table(rows[1:], "", "", ["equal to plain"]).rows[0]
    assert equal == "2 of 4 (2 at near-ties)"


def test_tau_over_prompts_weighs_them_alike() -> None:
    def decode(prompts):
        steps = {1: [4], 2: [1, 1, 1], 3: []}
        return [[5]] * len(prompts), [steps[p[0]] for p in prompts]

    (row,) = measure_decoding(
        [Method("ar", 1, decode)], [[1], [2], [3]], domain="code", batch_size=3, repeats=1
    )
    assert (row.tau, row.tau_prompts) == (1.75, 2.5)


def test_what_the_first_call_takes_longer_is_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    seconds = iter([7.0, 1.0, 3.0, 2.0])

    def decode(prompts):
        clock[0] += next(seconds)
        return [[5]], [[1]]

    arguments = {"domain": "code", "batch_size": 1, "repeats": 3}
    (row,) = measure_decoding([Method("ar", 1, decode)], [[1]], **arguments)
    assert row.compile_seconds == 5.0


def test_speed_is_tokens_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading the clock takes half a second here, so a call takes half a second.
    ticks = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) / 2)
    (row,) = measure_decoding(
        [fake("ar", {1: [5, 6, 7]}, steps=[1])], [[1]], domain="code", batch_size=1, repeats=1
    )
    assert row.tokens_per_second.median == 6.0


def test_batches_are_timed_in_turn_and_added(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def method(name: str) -> Method:
        def decode(prompts):
            ((seconds,),) = prompts
            clock[0] += seconds
            order.append((name, seconds))
            return [[5]], [[1]]

        return Method(name, 1, decode)

    rows = measure_decoding(
        [method("ar"), method("flex")], [[1], [3]], domain="code", batch_size=1, repeats=2
    )
    assert [row.tokens_per_second for row in rows] == [Spread(0.5, 0.5, 0.5)] * 2
    turns = [sorted(order[first : first + 2]) for first in range(4, 12, 2)]
    assert turns == [[("ar", t), ("flex", t)] for t in (1, 1, 3, 3)]


def test_flex_is_held_against_the_best_fixed_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def taking(name: str, seconds: float) -> Method:
        def decode(prompts):
            clock[0] += seconds
            return [[5]], [[1]]

        return Method(name, 1, decode)

    def measured(*methods: Method):
        rows = measure_decoding(methods, [[1]], domain="code", batch_size=1, repeats=1)
        return [row.beside_best for row in rows]

    # A peer that is faster is no schedule of ours.
    ar, sequential, flex, peer = map(taking, ("ar", "sequential", "flex", "peer"), (4, 2, 1, 0.5))
    assert measured(ar, sequential, flex, peer) == [None, None, Spread(2, 2, 2), None]
    assert measured(ar, flex) == [None, Spread(4, 4, 4)]


def test_prompts_fill_whole_batches() -> None:
    with pytest.raises(ValueError, match="3 prompts: must be a multiple of batch_size=2"):
        measure_decoding([], [[1]] * 3, domain="code", batch_size=2)


def test_same_bucket_takes_the_one_that_most_prompts_of_every_domain_are_in() -> None:
    short, long = [0] * 60, [0] * 120
    rows = same_bucket({"a": [short, long, long], "b": [long, short, long]}, 20, 4)
    assert rows == {"a": [1, 2], "b": [0, 2]}


def test_same_bucket_looks_at_the_whole_row_with_its_block() -> None:
    # 63 + 62 tokens and a block of 5 fit into 128 slots, as the last two are never cached; 64 + 62
    # do not.
    rows = same_bucket({"a": [[0] * 62, [0] * 63, [0] * 64]}, 62, 5)
    assert rows == {"a": [0, 1]}


def test_block_size_is_the_drafts_own_unless_another_is_asked_for(models) -> None:
    def size(schedule: str, **options) -> int:
        method = schedule_method(models.target, models.draft, schedule, max_new_tokens=1, **options)
        return method.block_size

    assert size("ar") == 1
    assert size("parallel") == 4
    assert size("sequential", block_size=3) == 3


def test_prompts_may_have_luck_of_their_own(models) -> None:
    def lengths(prompts: list[list[int]], own: bool) -> list[list[int]]:
        method = schedule_method(
            models.target,
            models.draft,
            "sequential",
            max_new_tokens=40,
            forced_acceptance=0.5,
            noise_of_prompts=own,
        )
        return method.decode(prompts)[1]

    assert lengths([[1, 2]], False) == lengths([[2, 1]], False)
    assert lengths([[1, 2]], True) == lengths([[1, 2]], True) != lengths([[2, 1]], True)
    first, second = lengths([[1, 2], [1, 2]], True)
    assert first != second
