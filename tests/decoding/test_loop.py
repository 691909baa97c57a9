"""The compiled loop: frozen rows, one trace, an aliased cache, growth."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding.generate import Sizes
from flexdraft_jax.decoding.loop import prefill, run
from flexdraft_jax.decoding.state import RUNNING
from flexdraft_jax.models.cache import grow
from flexdraft_jax.parallel.axes import logical_axes


@pytest.mark.parametrize("schedule", ["parallel", "flex"])
def test_a_finished_row_never_changes(begin, draft, prompts, schedule):
    decoding = begin(draft, prompts, [1, 2, 4, 40, 3, 40, 9, 0], schedule)
    before = jax.device_get(decoding.state)
    while bool(decoding.state.active.any()):
        decoding.advance(1)
        after = jax.device_get(decoding.state)
        finished = np.flatnonzero(before.finish_reason != RUNNING)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(old[finished], new[finished])
        before = after


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


def test_a_full_cache_returns_and_goes_on_when_grown(begin, decode, draft, prompts):
    expected = decode(draft, prompts, 40, "sequential")
    small = Sizes(prompt=16, output=48, slots=32)
    decoding = begin(draft, prompts, 40, "sequential", sizes=small)
    decoding.advance(10_000)
    paused = decoding.state
    assert bool(paused.active.any())
    full = paused.length + 5 > 32
    assert bool((full & paused.active).any())
    decoding.state = dataclasses.replace(paused, cache=grow(paused.cache, 64))
    decoding.advance(10_000)
    assert decoding.output() == expected


def test_new_prompts_of_the_same_bucket_compile_nothing(target, draft, prompts):
    fd.generate(target, draft, prompts[2:4], 10)
    compiled = run._cache_size(), prefill._cache_size()
    for other in ([[1], [2, 3, 4]], [[60] * 8, [0] * 7], [[5, 6], [7]]):
        fd.generate(target, draft, other, [9, 3], stop_token_ids=[4], confidence_threshold=0.5)
    assert (run._cache_size(), prefill._cache_size()) == compiled


@pytest.mark.parametrize(
    ("schedule", "threshold"),  # A threshold of 0 has one static variant.
    [("ar", 0.0), ("parallel", 0.0), ("parallel", 0.3), ("sequential", 0.3), ("flex", 0.3)],
)
def test_the_cache_is_updated_in_place(begin, draft, prompts, schedule, threshold):
    """The compiled loop aliases the whole cache and copies none of it."""
    decoding = begin(draft, prompts, 40, schedule, threshold)
    cache = decoding.state.cache
    compiled = run.lower(
        decoding.program, decoding.variables, decoding.state, jnp.int32(8), decoding.costs
    ).compile()
    cache_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache_bytes
    shape = ",".join(map(str, cache.keys[0].shape))
    hlo = compiled.as_text()
    assert f"f32[{shape}]" in hlo  # or the search below could find nothing
    copies = re.findall(rf"^.* = f32\[{shape}\]\S* (?:copy|transpose|pad)\(.*$", hlo, re.M)
    assert copies == []


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
