"""The plan is about what the compiled programs need, and what does not fit is refused."""

import dataclasses

import jax
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding import batch, memory
from flexdraft_jax.decoding.batch import begin
from flexdraft_jax.decoding.costs import Profile, StepCosts
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.loop import read_prompt_chunk, run
from flexdraft_jax.decoding.memory import Work, check_memory, plan_memory
from flexdraft_jax.decoding.program import choose_program
from flexdraft_jax.decoding.requests import Request, block_size_of
from flexdraft_jax.decoding.sizes import Sizes

MIB = 2**20


@pytest.mark.parametrize(
    ("schedule", "dtype", "vocab_size", "temperature", "batch_size", "sampling"),
    [
        ("ar", "float32", 8000, 0.8, 8, "coupled"),
        ("ar", "bfloat16", 8000, 0.0, 8, "coupled"),
        ("ar", "bfloat16", 8000, 0.0, 1, "coupled"),
        ("sequential", "float32", 8000, 0.0, 8, "coupled"),
        pytest.param("sequential", "float32", 8000, 0.8, 8, "rejection", marks=pytest.mark.slow),
        ("parallel", "float32", 5, 0.0, 8, "coupled"),
        ("flex", "float32", 8000, 0.8, 8, "coupled"),
    ],
)
def test_the_plan_is_what_the_compiler_asks_for(
    five_tokens, schedule, dtype, vocab_size, temperature, batch_size, sampling
):
    """For the loop and for reading, whichever takes more; with what their arguments take."""
    config = dataclasses.replace(five_tokens[0].config, vocab_size=vocab_size)
    target = fd.init_target(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), target.params)
    target = dataclasses.replace(target, params=params)
    draft = None
    if schedule != "ar":
        draft = fd.init_draft(
            target, num_draft_layers=1, block_size=4, calibration_rank=4, rng=jax.random.key(1)
        )
    n = block_size_of(draft, schedule, None)
    program, costs = choose_program(
        target,
        draft,
        schedule,
        n,
        "min_confidence",
        sampling,
        None,
        batch_size=batch_size,
        num_slots=256,
    )
    requests = [Request((1, 2, 3), 4, temperature=temperature)] * batch_size
    decoding = begin(target, draft, program, requests, Sizes(32, 256, 256), costs)
    reading = min(4, batch_size)
    work = Work(n, program.num_groups, 32, temperature > 0, reading_rows=reading)
    plan = plan_memory(target, draft, work, batch_size, 256)
    assert plan.cache == sum(x.nbytes for x in jax.tree.leaves(decoding.state.cache))
    assert plan.weights == sum(x.nbytes for x in jax.tree.leaves(decoding.variables))
    prompts = [0] * reading, [[1]] * reading, [True] * reading
    needed = []
    for function, arguments in (
        (run, decoding._running(decoding.state, 1, 1)),
        (read_prompt_chunk, decoding._reading(decoding.state, *prompts)),
    ):
        asked = function.lower(*arguments).compile().memory_analysis()
        needed.append(asked.argument_size_in_bytes + asked.temp_size_in_bytes)
    assert 0.8 * max(needed) <= plan.total <= 2 * max(needed)


@pytest.fixture
def device(monkeypatch):
    """device(10 * MIB) makes that the memory of the device."""
    return lambda size: monkeypatch.setattr(memory, "memory_limit", lambda target: size)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would(target, draft, device):
    work = Work(block_size=5, num_groups=1, chunk=64, draws=False)
    device(20 * MIB)
    with pytest.raises(ValueError, match="batch of 4096 rows of 128 tokens.*20.0 MiB") as error:
        check_memory(target, draft, lambda rows: work, 4096, 128)
    fitting = int(str(error.value).rpartition(" ")[-1])
    assert fitting > 1
    check_memory(target, draft, lambda rows: work, fitting, 128)
    with pytest.raises(ValueError, match=f"batch that fits is {fitting}$"):
        check_memory(target, draft, lambda rows: work, fitting + 1, 128)
    device(1000)
    with pytest.raises(ValueError, match="1000.0 B; not even one row fits"):
        check_memory(target, draft, lambda rows: work, 2, 128)
    device(None)
    check_memory(target, draft, lambda rows: work, 10**6, 10**6)


def parallel_below(rows: int) -> Profile:
    """Makes flex take parallel steps, which need more memory, in smaller batches alone."""
    cheap = StepCosts(5, rows - 1, 256, {0: 1.0, 3: 9.0, 4: 9.0}, 9.0, {3: 1.0, 4: 1.0})
    dear = dataclasses.replace(cheap, batch_size=rows, parallel={3: 99.0, 4: 99.0})
    return Profile((cheap, dear))


@pytest.mark.parametrize(("length", "mib"), [(200, 8), (200, 20), (1, 2), (1, 4)])
@pytest.mark.parametrize("profile", [None, parallel_below(16)])
def test_generate_takes_the_batch_that_it_names(
    target, draft, device, monkeypatch, length, mib, profile
):
    """Though fewer rows read more of a prompt at once, and take other steps."""
    begun: list[int] = []

    def begin(target, draft, program, requests, *others, **options):
        begun.append(len(requests))
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "begin", begin)
    device(mib * MIB)
    rows = [[1] * length] * 64
    with pytest.raises(ValueError, match="the largest batch that fits is") as error:
        fd.generate(target, draft, rows, 9, profile=profile)
    fitting = int(str(error.value).rpartition(" ")[-1])
    with pytest.raises(KeyboardInterrupt):
        fd.generate(target, draft, rows[:fitting], 9, profile=profile)
    assert begun == [fitting]


def test_generate_and_the_engine_refuse_before_anything_is_there(target, draft, device):
    device(2 * MIB)
    before = run._cache_size(), len(jax.live_arrays())
    with pytest.raises(ValueError, match="64 rows of 256 tokens does not fit"):
        fd.generate(target, draft, [[1]] * 64, 200)
    message = "64 rows of 255 tokens does not fit.*the largest batch that fits is [1-9]$"
    with pytest.raises(ValueError, match=message):
        DecodeEngine(target, draft, batch_size=64, max_length=250, prompt_chunk=16)
    assert (run._cache_size(), len(jax.live_arrays())) == before


def test_the_engine_takes_the_longest_rows_that_fit(target, draft, monkeypatch):
    longest = {}
    for size in (5 * MIB, 3 * MIB, 10**12, None):
        monkeypatch.setattr(memory, "memory_limit", lambda target, size=size: size)
        monkeypatch.setattr(fd.decoding.engine, "memory_limit", lambda target, size=size: size)
        longest[size] = DecodeEngine(target, draft, batch_size=8, prompt_chunk=16).max_length
    assert longest[None] == longest[10**12] == 256
    assert longest[3 * MIB] == 128


def test_the_limit_of_a_cpu_is_its_memory(target):
    limit = memory.memory_limit(target)
    assert limit is not None and 2**30 < limit < 2**50


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"memory.max": "1048576\n"}, None, 2**20),
        ({"memory.max": "max\n"}, None, None),
        ({}, None, None),
        # A group may take no more than the one that it is part of.
        ({"a/memory.max": "1048576", "a/b/memory.max": "2097152"}, "0::/a/b", 2**20),
        ({"a/memory.max": "max", "a/b/memory.max": "2097152"}, "0::/a/b", 2**21),
        ({"memory/a/memory.limit_in_bytes": "4096"}, "3:cpu,memory:/a\n2:net:/x", 4096),
    ],
)
def test_a_container_may_have_less(target, monkeypatch, tmp_path, files, own, limit):
    whole = memory.memory_limit(target)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_GROUPS", str(tmp_path))
    monkeypatch.setattr(memory, "_OWN_GROUPS", str(tmp_path / "own"))
    found = memory.memory_limit(target)
    assert found == limit if limit else found >= whole


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes_are_written_for_people(size, text):
    assert memory._size(size) == text
