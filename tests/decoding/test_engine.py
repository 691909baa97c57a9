"""Answers of the engine equal decoding alone, whatever shares the batch; programs stay few."""

import dataclasses
import itertools
import random

import jax
import numpy as np
import pytest

from flexdraft_jax.decoding import batch, engine
from flexdraft_jax.decoding.engine import DecodeEngine, _choose_chunk
from flexdraft_jax.decoding.loop import admit, read_prompt_chunk, run
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sizes import Sizes

SCHEDULES = ("ar", "parallel", "sequential")


@pytest.fixture(scope="module")
def requests(prompts) -> list[Request]:
    """Thirty of them: every prompt, some longer ones, budgets from 0 to 40, stop tokens."""
    rng = np.random.default_rng(0)
    longer = [rng.integers(0, 61, size=size).tolist() for size in (40, 75, 33)]
    return [
        Request(
            prompt=tuple((prompts + longer)[i % 11]),
            budget=int(rng.choice([0, 1, 2, 5, 20, 40])),
            confidence_threshold=0.3,
            stop_token_ids=tuple(rng.integers(0, 61, size=i % 4).tolist()),
            temperature=[0.0, 0.8, 1.5][i % 3],
            top_k=[0, 9][i % 2],
            seed=i % 5,
            row_id=i,
        )
        for i in range(30)
    ]


@pytest.fixture(scope="module")
def alone(begin, requests) -> list[tuple[list[int], str]]:
    """Tokens and reason of each, by plain decoding of one request at a time."""
    answers = []
    for r in requests:
        drawn = {name: getattr(r, name) for name in ("temperature", "top_k", "seed")}
        drawn |= {"row_ids": [r.row_id], "sizes": Sizes(prompt=16, slots=128, max_slots=128)}
        decoding = begin(None, [r.prompt], r.budget, "ar", stops=r.stop_token_ids, **drawn)
        decoding.advance(10_000)
        out = decoding.output()
        answers.append((out.tokens[0], out.finish_reasons[0]))
    return answers


@pytest.fixture(scope="module")
def make(target, draft):
    """An engine of four rows that reads prompts in chunks of 16."""

    def make(schedule: str = "sequential", **settings) -> DecodeEngine:
        settings = {"batch_size": 4, "prompt_chunk": 16, **settings}
        return DecodeEngine(
            target, None if schedule == "ar" else draft, schedule=schedule, **settings
        )

    return make


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_answers_equal_decoding_alone(make, requests, alone, schedule):
    answers = list(make(schedule).run(requests))
    assert sorted(answer.index for answer in answers) == list(range(len(requests)))
    assert [a.index for a in answers] != list(range(len(requests)))  # as they are finished
    for answer in answers:
        assert (answer.tokens, answer.finish_reason) == alone[answer.index]
        assert answer.seconds >= answer.first_token_seconds > 0


def test_the_order_of_requests_changes_nothing(make, requests, alone):
    engine = make()
    for seed in range(3):
        order = random.Random(seed).sample(range(len(requests)), len(requests))
        for answer in engine.run(requests[i] for i in order):
            assert answer.tokens == alone[order[answer.index]][0]


def test_rejection_gives_whole_answers(make, requests, alone):
    for answer in make(sampling="rejection").run(requests):
        request = requests[answer.index]
        if request.temperature == 0:
            assert answer.tokens == alone[answer.index][0]
        assert len(answer.tokens) <= request.budget
        assert answer.finish_reason == "stop" or len(answer.tokens) == request.budget


def test_updates_add_up_to_answers(make, requests):
    expected = {a.index: a for a in make().run(requests)}
    written: dict[int, list[int]] = {}
    seen_running = set()
    for update in make().stream(requests, steps_per_update=1):
        written.setdefault(update.index, []).extend(update.tokens)
        if update.answer is None:
            assert update.tokens
            seen_running.add(update.index)
        else:
            assert written[update.index] == update.answer.tokens
            for field in ("tokens", "acceptance_lengths", "verify_lengths", "finish_reason"):
                same = expected[update.index]
                assert getattr(update.answer, field) == getattr(same, field)
    assert written.keys() == expected.keys() and len(seen_running) > 5


def test_fills_say_how_many_rows_decoded(make, prompts):
    """Three rows of the same request and one of a longer: 4 rows, then 1."""
    request = Request(tuple(prompts[4]), 20, 0.3)
    longer = dataclasses.replace(request, budget=40)
    answers = {a.index: a for a in make().run([request, longer, request, request])}
    steps = len(answers[0].acceptance_lengths)
    assert answers[0].batch_fills == [4] * steps
    assert answers[1].batch_fills == [4] * steps + [1] * (
        len(answers[1].acceptance_lengths) - steps
    )


def test_requests_are_taken_when_a_row_is_free(make, prompts):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield Request(tuple(prompts[i % 8]), 3 + i % 5)

    answers = make().run(endless())
    assert taken == []
    for count, _ in enumerate(itertools.islice(answers, 20), start=1):
        assert len(taken) <= count + 4
    answers.close()


def test_programs_are_few_and_compiled_ahead(target, draft, caplog):
    """One loop, and reading for one row and for four, at each size of the cache; no more."""
    rng = np.random.default_rng(1)
    lines: list[str] = []
    few = DecodeEngine(
        target,
        draft,
        batch_size=5,
        prompt_chunk=16,
        pruning_strategy="min_confidence",  # of no other test, so that nothing is there yet
        progress=lines.append,
    )

    def some(count: int, longest: int) -> list[Request]:
        prompts = [rng.integers(0, 61, size=rng.integers(1, longest)) for _ in range(count)]
        return [Request(tuple(prompt.tolist()), 12) for prompt in prompts]

    def sizes() -> np.ndarray:
        return np.array([f._cache_size() for f in (run, read_prompt_chunk, admit)])

    before = sizes()
    with jax.log_compiles():
        answers = few.run(some(40, 60))
        next(answers)
        assert lines == ["compiling for 5 rows of 128 tokens"]
        assert [line for line in caplog.messages if "compilation of jit(run)" in line]
        caplog.clear()
        assert len(list(answers)) == 39
        for name in ("run", "read_prompt_chunk"):
            assert not [line for line in caplog.messages if f"compilation of jit({name})" in line]
    assert (sizes() - before).tolist() == [1, 2, 1]
    assert len(list(few.run(some(20, 60)))) == 20
    assert (sizes() - before).tolist() == [1, 2, 1]
    assert len(list(few.run(some(20, 60) + some(5, 200) + some(20, 60)))) == 45
    assert np.all(sizes() - before <= [2, 4, 2])


def test_the_cache_grows_for_a_long_row_and_shrinks_behind_it(make, prompts, monkeypatch):
    short, long = Request(tuple(prompts[2]), 4), Request(tuple(prompts[1]) * 5, 100)
    requests = [*[short] * 5, long, *[dataclasses.replace(short, budget=40)] * 20]
    expected = {a.index: a.tokens for a in make("ar").run(requests)}

    def small_bucket(size: int, largest: int) -> int:
        return min(max(16, 1 << (size - 1).bit_length()), largest)

    monkeypatch.setattr(batch, "slot_bucket", small_bucket)
    monkeypatch.setattr(engine, "slot_bucket", small_bucket)
    sizes = []
    advance = batch.Decoding.advance

    def watched(self, *args, **kwargs):
        advance(self, *args, **kwargs)
        sizes.append(self.num_slots)

    monkeypatch.setattr(batch.Decoding, "advance", watched)
    assert {a.index: a.tokens for a in make("ar").run(requests)} == expected
    assert sizes[0] == 16 and max(sizes) == 256 and sizes[-1] <= 128


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 3), r"request 1: prompts\[0\] is empty"),
        (Request((61,), 3), r"request 1: prompts\[0\]\[0\]=61"),
        (
            Request((1,) * 90, 20),
            "request 1: the prompt has 90 tokens and budget=20.*max_length=100",
        ),
        (Request((1,), 3, temperature=-1.0), r"request 1: temperature\[0\]=-1.0"),
    ],
)
def test_a_bad_request_is_named(make, request_, message):
    with pytest.raises(ValueError, match=message):
        list(make(max_length=100).run([Request((1,), 1), request_]))


def test_something_else_than_a_request_is_refused(make):
    with pytest.raises(TypeError, match=r"request 0: \[1, 2\] is a list: must be a Request"):
        list(make().run([[1, 2]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"prompt_chunk": 0}, "prompt_chunk=0: must be at least 1"),
        ({"max_length": 0}, "max_length=0: must be at least 1"),
        ({"max_length": 257}, "max_length=257.*max_position_embeddings=256"),
        ({"schedule": "fast"}, "schedule='fast'"),
        ({"sampling": "typical"}, "sampling='typical'"),
    ],
)
def test_settings_out_of_range_are_refused(target, draft, settings, message):
    with pytest.raises(ValueError, match=message):
        DecodeEngine(target, draft, **settings)


def test_stream_checks_at_the_call(make):
    with pytest.raises(ValueError, match="steps_per_update=0: must be at least 1"):
        make().stream([], steps_per_update=0)


def test_no_requests_no_answers(make):
    assert list(make().run([])) == []


def test_logits_that_are_nan_are_an_error(target, draft, prompts):
    scale = target.params["final_norm"]["scale"]
    loud = {**target.params, "final_norm": {"scale": scale * 0 + 3e38}}
    engine = DecodeEngine(
        dataclasses.replace(target, params=loud), draft, batch_size=4, prompt_chunk=16
    )
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        list(engine.run([Request(tuple(prompts[0]), 4)]))


@pytest.mark.parametrize(
    ("lengths", "chunk"), [([5, 9], 32), ([100] * 3, 128), ([20] * 9 + [2000], 64), ([60], 64)]
)
def test_chunks_fit_the_prompts(lengths, chunk):
    assert _choose_chunk(lengths) == chunk
