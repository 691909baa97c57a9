"""Answers of the engine equal decoding alone, whatever shares the batch; programs stay few."""

import dataclasses
import itertools
import random
from collections import Counter

import jax
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding import batch, engine
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.engine import DecodeEngine, _choose_chunk
from flexdraft_jax.decoding.loop import admit, read_prompt_chunk, run
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sizes import Sizes


@pytest.fixture(scope="module")
def requests(prompts) -> list[Request]:
    """Thirty of them: every prompt, some longer ones, 0 to 40 new tokens, stop tokens."""
    rng = np.random.default_rng(0)
    longer = [rng.integers(0, 61, size=size).tolist() for size in (40, 75, 33)]
    return [
        Request(
            prompt=tuple((prompts + longer)[i % 11]),
            max_new_tokens=int(rng.choice([0, 1, 2, 5, 20, 40])),
            confidence_threshold=[0.3, 0.0][i % 2],
            stop_token_ids=tuple(rng.integers(0, 61, size=i % 4).tolist()),
            temperature=[0.0, 0.8, 1.5][i % 3],
            top_k=[0, 9][i % 2],
            seed=i % 5,
            row_id=i,
        )
        for i in range(30)
    ]


@pytest.fixture(scope="module")
def alone(target, requests) -> list[tuple[list[int], str]]:
    """Tokens and reason of each, by plain decoding of all of them side by side."""
    return plainly(target, requests)


def plainly(target, requests) -> list[tuple[list[int], str]]:
    decoding = start(target, None, requests, "ar", sizes=Sizes(prompt=16, slots=256, max_slots=256))
    decoding.advance(10_000)
    out = decoding.output()
    return list(zip(out.tokens, out.finish_reasons, strict=True))


@pytest.fixture(scope="module")
def make(target, draft):
    """An engine of four rows that reads prompts in chunks of 16."""

    def make(schedule: str = "sequential", *, target=target, draft=draft, **settings):
        settings = {"batch_size": 4, "prompt_chunk": 16, **settings}
        return DecodeEngine(target, draft, schedule=schedule, **settings)

    return make


@pytest.mark.parametrize("schedule", ["ar", "sequential", "flex"])
def test_answers_equal_decoding_alone(make, requests, alone, schedule, turns):
    answers = list(make(schedule).run(requests))
    if schedule == "flex":
        assert {0, 3, 4} <= {v for answer in answers for v in answer.verify_lengths}
    assert sorted(answer.index for answer in answers) == list(range(len(requests)))
    assert [a.index for a in answers] != list(range(len(requests)))  # as they are finished
    for answer in answers:
        assert (answer.tokens, answer.finish_reason) == alone[answer.index]
        assert answer.seconds >= answer.first_token_seconds > 0


def test_the_order_of_requests_changes_nothing(make, requests, alone):
    """With greedy ones first, random numbers come in when others are on their way."""
    engine, count = make(), len(requests)
    orders = [random.Random(seed).sample(range(count), count) for seed in range(2)]
    for order in (*orders, sorted(range(count), key=lambda i: requests[i].temperature > 0)):
        for answer in engine.run(requests[i] for i in order):
            assert answer.tokens == alone[order[answer.index]][0]


def test_rejection_gives_whole_answers(make, requests, alone):
    for answer in make(sampling="rejection", batch_size=1).run(requests):
        request, (tokens, _) = requests[answer.index], alone[answer.index]
        if request.temperature == 0:
            assert answer.tokens == tokens
        assert len(answer.tokens) <= request.max_new_tokens
        assert answer.finish_reason == "stop" or len(answer.tokens) == request.max_new_tokens


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
    longer = dataclasses.replace(request, max_new_tokens=40)
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

    engine = make()
    answers = engine.run(endless())
    assert taken == []
    for count, _ in enumerate(itertools.islice(answers, 20), start=1):
        assert len(taken) <= count + 4
    answers.close()
    some = [Request(tuple(prompt), 5) for prompt in prompts]
    again, other = ({a.index: a.tokens for a in e.run(some)} for e in (engine, make()))
    assert again == other and len(again) == 8


def num_programs() -> list[int]:
    """Of decoding, of reading prompts, and of admitting rows."""
    return [f._cache_size() for f in (run, read_prompt_chunk, admit)]


def test_programs_are_few_and_compiled_ahead(five_tokens, caplog):
    """Flex's loop, reading for one row and for four, and admitting."""
    target, draft, _ = five_tokens
    rng = np.random.default_rng(1)
    lines: list[str] = []
    few = DecodeEngine(target, draft, batch_size=5, prompt_chunk=16, progress=lines.append)

    def some(count: int, longest: int) -> list[Request]:
        prompts = [rng.integers(0, 5, size=rng.integers(1, longest)) for _ in range(count)]
        return [Request(tuple(prompt.tolist()), 12) for prompt in prompts]

    before = num_programs()
    with jax.log_compiles():
        answers = few.run(some(40, 60))
        next(answers)
        assert lines == ["compiling for 5 rows of 128 tokens"]
        assert [line for line in caplog.messages if "compilation of jit(run)" in line]
        caplog.clear()
        assert len(list(answers)) == 39
        for name in ("run", "read_prompt_chunk"):
            assert not [line for line in caplog.messages if f"compilation of jit({name})" in line]
    assert len(list(few.run(some(20, 60)))) == 20
    assert num_programs() == [before[0] + 1, before[1] + 2, before[2] + 1]
    assert len(lines) == 1


@pytest.mark.slow
def test_what_is_compiled_later_is_told(five_tokens):
    """A row with a temperature asks for another loop, once, and so does a long one."""
    target, draft, _ = five_tokens
    lines: list[str] = []
    few = DecodeEngine(target, draft, batch_size=3, prompt_chunk=16, progress=lines.append)
    cold = [Request((i % 5, 1), 12) for i in range(6)]
    warm = dataclasses.replace(cold[0], temperature=1.0)
    before = num_programs()
    assert len(list(few.run([*cold, warm, *cold, warm]))) == 14
    told = ["compiling for 3 rows of 128 tokens"]
    told += [f"{told[0]}, at temperature > 0"]
    assert lines == told
    assert [new - old for new, old in zip(num_programs(), before, strict=True)] == [2, 3, 1]
    list(few.run([*cold, dataclasses.replace(cold[0], max_new_tokens=180)]))
    told += ["compiling for 3 rows of 256 tokens"]
    assert lines == told
    list(few.run([*cold, dataclasses.replace(warm, max_new_tokens=180)]))
    assert lines == [*told, f"{told[-1]}, at temperature > 0"]


def test_the_cache_grows_for_a_long_row_and_shrinks_behind_it(five_tokens, monkeypatch):
    """And programs are compiled once for each of its sizes."""
    config = dataclasses.replace(five_tokens[0].config, num_layers=1, layer_windows=(None,))
    target = fd.init_target(config, jax.random.key(1))
    short, long = Request((3, 1), 4), Request((0, 1, 2, 3) * 18, 100)
    requests = [*[short] * 3, long, *[dataclasses.replace(short, max_new_tokens=40)] * 10]
    expected = [tokens for tokens, _ in plainly(target, requests)]

    def small_bucket(size: int, largest: int) -> int:
        return min(max(64, 1 << (size - 1).bit_length()), largest)

    monkeypatch.setattr(batch, "slot_bucket", small_bucket)
    monkeypatch.setattr(engine, "slot_bucket", small_bucket)
    sizes = []
    advance = batch.Decoding.advance

    def watched(self, *args, **kwargs):
        advance(self, *args, **kwargs)
        sizes.append(self.num_slots)

    monkeypatch.setattr(batch.Decoding, "advance", watched)
    before = num_programs()
    answers = DecodeEngine(target, None, batch_size=2, prompt_chunk=64).run(requests)
    written = {answer.index: answer.tokens for answer in answers}
    assert [written[index] for index in range(len(requests))] == expected
    assert sizes[0] == 64 and max(sizes) == 256 and sizes[-1] <= 128
    # Decoding with 64, 128 and 256 slots; reading one row and two with two of them, and admitting.
    assert [new - old for new, old in zip(num_programs(), before, strict=True)] == [3, 4, 2]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 3), "request 1: prompt is empty"),
        (Request((61,), 3), r"request 1: prompt\[0\]=61"),
        (
            Request((1,) * 90, 20),
            "request 1: the prompt has 90 tokens and max_new_tokens=20.*max_length=100",
        ),
        (Request((1,), 3, temperature=-1.0), "request 1: temperature=-1.0"),
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
        ({"batch_size": 10**20}, f"batch_size={10**20}: must be .* at most {2**31 - 1}"),
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


@pytest.mark.parametrize("schedule", ["sequential", "ar"])
@pytest.mark.parametrize("which", ["draft", "foreign_draft"])
def test_nan_ends_a_request_alone(make, target, requests, alone, schedule, which, request):
    """Token 38 overflows: an answer ends with the first one, or at once where the prompt has it."""
    embedding = target.params["embed"]["embedding"].at[38].set(np.nan)
    loud = dataclasses.replace(target, params={**target.params, "embed": {"embedding": embedding}})
    draft = request.getfixturevalue(which)
    reasons = Counter()
    for update in make(schedule, target=loud, draft=draft).stream(requests, steps_per_update=1):
        assert all(token < 61 for token in update.tokens)
        answer, wanted = update.answer, requests[update.index]
        if answer is None:
            continue
        tokens, reason = alone[answer.index]
        if 38 in wanted.prompt and wanted.max_new_tokens:
            tokens, reason = [], "error"
        elif 38 in tokens[:-1]:
            tokens, reason = tokens[: tokens.index(38) + 1], "error"
        assert (answer.tokens, answer.finish_reason) == (tokens, reason)
        reasons[reason] += 1
    assert reasons["error"] > 3 and reasons["length"] > 3


@pytest.mark.parametrize("schedule", ["sequential", "ar"])
def test_values_that_overflow_end_a_request_alone(make, target, requests, schedule):
    """Token 38 has infinite values and finite keys; a row that had one takes the next request."""
    params = jax.tree.map(lambda x: x, target.params)
    embedding = params["embed"]["embedding"].at[:, 0].set(0.0).at[38, 0].set(9.0)
    kernel = params["layers_0"]["attention"]["v_proj"]["kernel"].at[0].set(3e38)
    params["embed"]["embedding"] = embedding
    params["layers_0"]["attention"]["v_proj"]["kernel"] = kernel
    loud = dataclasses.replace(target, params=params)
    reasons = Counter()
    for answer in make(schedule, target=loud).run(requests):
        seen = 38 in requests[answer.index].prompt or 38 in answer.tokens
        assert seen or answer.finish_reason != "error"
        reasons[answer.finish_reason] += 1
    assert reasons["error"] > 3 and reasons["length"] > 3


def test_requests_of_one_token_stop_nobody(make):
    """They end as soon as they are read; a longer one beside them goes on."""
    requests = [Request((1, 2), 12), *[Request((3,), 1) for _ in range(30)]]
    engine = make("ar", batch_size=2)
    done = [u.index for u in engine.stream(requests, steps_per_update=4) if u.answer]
    assert sorted(done) == list(range(31)) and done.index(0) < 10


@pytest.mark.parametrize(
    ("lengths", "chunk"), [([5, 9], 32), ([100] * 3, 128), ([20] * 9 + [2000], 64), ([60], 64)]
)
def test_chunks_fit_the_prompts(lengths, chunk):
    assert _choose_chunk(lengths) == chunk
