"""Refilled rows beside fixed batches: the same answers, and a table."""

from flexdraft_jax.evaluation import refill
from flexdraft_jax.evaluation.refill import measure_refill, mixed_requests


def test_requests_are_of_all_lengths(models) -> None:
    requests = mixed_requests(models.tokenizer, 50, shortest=2, longest=9)
    assert {request.max_new_tokens for request in requests} == set(range(2, 10))
    assert len({request.prompt for request in requests}) == 50
    assert not any(request.stop_token_ids for request in requests)


def test_both_ways_are_measured_on_the_same_answers(models, monkeypatch) -> None:
    times = iter([4.0, 4.0, 2.0, 2.0])  # Fixed twice, then refilled.

    def in_order(timers, repeats):
        return {name: [timer() for _ in range(repeats)] for name, timer in timers.items()}

    def seconds(action):
        action()
        return next(times)

    monkeypatch.setattr(refill, "interleave", in_order)
    monkeypatch.setattr(refill, "seconds", seconds)
    requests = mixed_requests(models.tokenizer, 7, longest=12)
    report = measure_refill(models.target, None, requests, batch_size=2, schedule="ar", repeats=2)
    assert report.num_equal == report.num_requests == 7
    assert report.num_tokens == sum(request.max_new_tokens for request in requests)
    assert report.speedup.low == report.speedup.high == 2.0
    assert report.refilled.median == report.num_tokens / 2.0
    table = report.to_table()
    assert table.rows[1][0] == "refilled rows" and "7 of 7 answers" in table.note
