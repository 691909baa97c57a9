"""The compiled loop: frozen rows, one trace, an aliased cache, growth."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding.costs import Profile, StepCosts
from flexdraft_jax.decoding.loop import read_prompt_chunk, run
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sizes import Sizes
from flexdraft_jax.decoding.state import RUNNING
from flexdraft_jax.models.cache import Cache
from flexdraft_jax.parallel.axes import logical_axes


@pytest.mark.parametrize("schedule", ["parallel", "flex"])
def test_a_finished_row_never_changes_but_is_forgotten(begin, draft, prompts, schedule):
    decoding = begin(draft, prompts, [1, 2, 4, 40, 3, 40, 9, 0], schedule)
    before = jax.device_get(decoding.state)
    num_forgotten = 0
    while bool(decoding.state.active.any()):
        decoding.advance(1)
        after = jax.device_get(decoding.state)
        finished = np.flatnonzero(before.finish_reason != RUNNING)
        frozen = (dataclasses.replace(state, history=None) for state in (before, after))
        for old, new in zip(*map(jax.tree.leaves, frozen), strict=True):
            np.testing.assert_array_equal(old[finished], new[finished])
        # What its drafts were worth counts for less from step to step.
        for name in ("rejected", "foretold", "accepted", "promised"):
            old, new = (getattr(state.history, name)[finished] for state in (before, after))
            np.testing.assert_allclose(new, 0.98 * old, rtol=1e-6)
            num_forgotten += np.sum(old > 0)
        before = after
    assert num_forgotten > 0 or schedule == "flex"  # Which may draft nothing.


def test_steps_one_by_one_equal_one_call(begin, decode, draft, prompts):
    decoding = begin(draft, prompts, 40, "parallel")
    while bool(decoding.state.active.any()):
        decoding.advance(3)
    assert decoding.output() == decode(draft, prompts, 40, "parallel")


def test_stream_yields_growing_prefixes(target, draft, prompts):
    settings = {"max_new_tokens": 12, "confidence_threshold": 0.0}
    final = fd.generate(target, draft, prompts[:1], **settings)
    updates = list(fd.stream(target, draft, prompts[:1], **settings))
    assert updates[-1] == final
    assert len(updates) == len(final.acceptance_lengths[0]) + 1
    for shorter, longer in zip(updates, updates[1:], strict=False):
        assert longer.tokens[0][: len(shorter.tokens[0])] == shorter.tokens[0]
        assert shorter.finish_reasons == ["running"]


def test_a_full_cache_grows_and_nothing_is_done_twice(begin, decode, draft, prompts):
    expected = decode(draft, prompts, 40, "sequential")
    decoding = begin(
        draft, prompts, 40, "sequential", sizes=Sizes(prompt=16, slots=32, max_slots=128)
    )
    done, full = decoding.run(10_000)
    assert full and done < max(map(len, expected.acceptance_lengths))
    assert bool((decoding.state.active & (decoding.state.length + 5 > 32)).any())
    assert decoding.run(10_000) == (0, True)
    decoding.advance(10_000)
    assert decoding.num_slots == 128
    assert decoding.output() == expected


def test_a_cache_is_used_to_the_last_slot(begin, draft, prompts):
    """A step that verifies less needs less room, as drafts that nobody verified are not written."""
    length = max(map(len, prompts))
    plain = begin(None, prompts, 40, "ar", sizes=Sizes(16, 32, 128))
    assert plain.run(10_000) == (32 - length, True)
    assert int(plain.state.length.max()) == 32
    dear = dict.fromkeys((3, 4), 99.0)
    never = Profile((StepCosts(5, 8, 32, {0: 1.0, **dear}, 99.0, {v: 999.0 for v in dear}),))
    flex = begin(draft, prompts, 40, "flex", sizes=Sizes(16, 32, 128), profile=never)
    assert flex.run(10_000) == (32 - length, True)


def test_a_cache_may_shrink_to_what_rows_need(begin, decode, draft, prompts):
    decoding = begin(draft, prompts, 40, "sequential")
    decoding.advance(2)
    before = decoding.state.cache
    decoding.resize(32)
    assert all(x.is_deleted() for x in jax.tree.leaves(before))
    decoding.resize(64)
    decoding.advance(10_000)
    assert decoding.output() == decode(draft, prompts, 40, "sequential")


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_prompt_in_chunks_equals_one_in_one_piece(begin, decode, draft, prompts, size):
    whole = begin(draft, prompts, [40, 0, *[40] * 6], "sequential")
    chunks = begin(draft, prompts, [40, 0, *[40] * 6], "sequential", sizes=Sizes(size, 64, 128))
    before, after = jax.device_get((whole.state, chunks.state))
    assert before.length.tolist() == after.length.tolist() == list(map(len, prompts))
    for old, new in zip(
        (*before.cache.keys, *before.cache.values),
        (*after.cache.keys, *after.cache.values),
        strict=True,
    ):
        for row, length in enumerate(before.length):
            np.testing.assert_allclose(old[row, :, :length], new[row, :, :length], atol=1e-5)
    np.testing.assert_allclose(before.block.hidden, after.block.hidden, atol=1e-4)
    np.testing.assert_array_equal(before.finish_reason, after.finish_reason)
    chunks.advance(10_000)
    whole.advance(10_000)
    assert chunks.output() == whole.output()


def test_rows_that_read_disturb_no_others(begin, draft, prompts):
    """Rows 1 and 4 start over while the others are in the middle of their answers."""
    budgets = [40, 1, 40, 40, 1, 40, 40, 40]
    requests = [Request(tuple(prompt), 40, 0.3, row_id=i) for i, prompt in enumerate(prompts)]
    undisturbed, decoding = (begin(draft, prompts, budgets, "sequential") for _ in range(2))
    undisturbed.advance(4)
    decoding.advance(2)
    decoding.admit([1, 4], requests)
    assert decoding.output().tokens[1] == [] and decoding.output().finish_reasons[1] == "running"
    decoding.advance(2)
    before, after = jax.device_get((undisturbed.state, decoding.state))
    # What drafts are worth is learned from the whole batch.
    before, after = (
        dataclasses.replace(
            state, history=dataclasses.replace(state.history, survival=None, promised=None)
        )
        for state in (before, after)
    )
    others = [0, 2, 3, 5, 6, 7]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[others], new[others])
    decoding.read([4, 8], [prompts[4][:5], []], [False, False])
    assert decoding.state.history.blocks[4] == 1  # Who reads on drafts nothing.
    decoding.read([4, 1], [prompts[4][5:], prompts[1]], [True, True])
    assert decoding.state.history.blocks[4] == 2
    decoding.advance(10_000)
    undisturbed.advance(10_000)
    expected = begin(draft, prompts, 40, "sequential")
    expected.advance(10_000)
    assert decoding.output() == expected.output()


def test_sizes_compiled_ahead_are_not_compiled_again(begin, draft, prompts, caplog):
    settings = {"sizes": Sizes(16, 32, 128), "pruning_strategy": "min_confidence"}
    decoding = begin(draft, prompts, 40, "sequential", **settings)
    told: list[str] = []
    decoding.progress = told.append
    with jax.log_compiles():
        decoding.compile_ahead(128)
        assert told == [f"compiling for 8 rows of {size} tokens" for size in (32, 128)]
        assert sum("compilation of jit(run)" in line for line in caplog.messages) == 2
        caplog.clear()
        decoding.advance(10_000)
        assert not [line for line in caplog.messages if "compilation of jit(run)" in line]


def test_new_prompts_of_the_same_bucket_compile_nothing(target, draft, prompts):
    fd.generate(target, draft, prompts[2:4], 10)
    compiled = run._cache_size(), read_prompt_chunk._cache_size()
    for other in ([[1], [2, 3, 4]], [[60] * 8, [0] * 7], [[5, 6], [7]]):
        fd.generate(target, draft, other, [9, 3], stop_token_ids=[4], confidence_threshold=0.5)
    assert (run._cache_size(), read_prompt_chunk._cache_size()) == compiled


@pytest.mark.parametrize(
    ("schedule", "threshold"),  # A threshold of 0 has one static variant.
    [("ar", 0.0), ("parallel", 0.0), ("parallel", 0.3), ("sequential", 0.3), ("flex", 0.3)],
)
def test_the_cache_is_updated_in_place(begin, draft, prompts, schedule, threshold):
    """The compiled loop aliases the whole cache and copies none of it."""
    decoding = begin(draft, prompts, 40, schedule, threshold)
    cache = decoding.state.cache
    compiled = run.lower(*decoding._running(decoding.state, 8, 1)).compile()
    assert copies_of(cache, compiled) == []


def test_rows_are_read_into_the_cache_in_place(begin, draft, prompts):
    decoding = begin(draft, prompts, 40, "sequential")
    reading = decoding._reading(decoding.state, [3], [prompts[0]], [True])
    compiled = read_prompt_chunk.lower(*reading).compile()
    assert copies_of(decoding.state.cache, compiled) == []


def copies_of(cache: Cache, compiled) -> list[str]:
    """Instructions of a program that make a whole array of the cache anew."""
    cache_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache_bytes
    shape = ",".join(map(str, cache.keys[0].shape))
    hlo = compiled.as_text()
    assert f"f32[{shape}]" in hlo  # or the search below could find nothing
    return re.findall(rf"^.* = f32\[{shape}\]\S* (?:copy|transpose|pad)\(.*$", hlo, re.M)


def test_the_state_is_donated(begin, draft, prompts):
    decoding = begin(draft, prompts, 40, "parallel")
    before = decoding.state
    decoding.advance(1)
    assert all(x.is_deleted() for x in jax.tree.leaves(before.cache))


def test_every_array_of_the_state_declares_its_axes(begin, draft, prompts):
    state = begin(draft, prompts, 40, "parallel").state
    axes = logical_axes(state)
    flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple) and x[0] == "batch")
    arrays = jax.tree.leaves(state)
    assert len(flat) == len(arrays)
    for names, array in zip(flat, arrays, strict=True):
        assert len(names) == array.ndim and names[0] == "batch"


def test_the_block_carries_what_its_drafts_were_read_from(begin, draft, prompts):
    decoding = begin(draft, prompts, 40, "parallel")
    decoding.advance(2)
    block = decoding.state.block
    logits = decoding.program.apply(
        decoding.variables, "draft_logits", block.hidden[:, 1:], block.tokens[:, :1]
    )
    np.testing.assert_array_equal(logits.argmax(-1), block.tokens[:, 1:])
