"""Masks against the rules, pair by pair."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flexdraft_jax.models import masks

WINDOWS = st.none() | st.integers(1, 7)


def within(query: int, key: int, window: int | None) -> bool:
    return window is None or query - key < window


@given(st.integers(1, 6), WINDOWS)
def test_block_mask(size, window):
    mask = masks.block_mask(size, window)
    for i in range(size):
        for j in range(size):
            assert mask[i, j] == (j <= i and within(i, j, window))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), WINDOWS)
def test_group_block_mask(groups, block_size, more_candidates, window):
    candidates = groups + more_candidates
    mask = masks.group_block_mask(groups, block_size, candidates, window)
    assert mask.shape == (groups * block_size, candidates)
    for k in range(groups):
        for j in range(block_size):
            for i in range(candidates):
                seen = i <= k and within(k + 1 + j, i, window)
                assert mask[k * block_size + j, i] == seen


@given(st.integers(1, 6), WINDOWS)
def test_own_group_mask_looks_both_ways(size, window):
    mask = masks.own_group_mask(size, window)
    for i in range(size):
        for j in range(size):
            assert mask[i, j] == within(i, j, window)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=2), st.integers(1, 3), WINDOWS)
def test_prefix_span(lengths, num_queries, window):
    length = np.array(lengths)
    positions = length[:, None] + np.arange(num_queries)
    span = masks.prefix_span(jnp.asarray(length), jnp.asarray(positions), window)
    mask = np.broadcast_to(span.mask(10), (2, num_queries, 10))
    for b in range(2):
        for t in range(num_queries):
            for s in range(10):
                seen = s < length[b] and within(positions[b, t], s, window)
                assert mask[b, t, s] == seen


def packed(document_lengths: list[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """segment_ids and positions of one row, padding last."""
    segments, positions = [], []
    for number, length in enumerate(document_lengths, 1):
        segments += [number] * length
        positions += range(length)
    rest = size - len(segments)
    return np.array([segments + [0] * rest]), np.array([positions + list(range(rest))])


DOCUMENTS = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@settings(deadline=None)
@given(DOCUMENTS, WINDOWS)
def test_segment_mask(documents, window):
    segments, positions = packed(documents, 15)
    mask = masks.segment_mask(jnp.asarray(segments), jnp.asarray(positions), window)[0]
    for i in range(15):
        for j in range(15):
            same = segments[0, i] == segments[0, j]
            causal = j <= i and within(i, j, window)
            assert mask[i, j] == (same and causal)
    span = masks.segment_span(jnp.asarray(segments), window)
    np.testing.assert_array_equal(span.mask(15)[0], mask)


@settings(deadline=None)
@given(DOCUMENTS, st.lists(st.integers(0, 14), min_size=2, max_size=2), WINDOWS)
def test_anchor_mask(documents, anchors, window):
    segments, positions = packed(documents, 15)
    mask = masks.anchor_mask(
        jnp.asarray(segments), jnp.asarray(positions), jnp.asarray([anchors]), 3, window
    )[0]
    for a, anchor in enumerate(anchors):
        for j in range(3):
            own = positions[0, anchor] + 1 + j
            for t in range(15):
                seen = (
                    segments[0, t] == segments[0, anchor]
                    and t <= anchor
                    and within(own, positions[0, t], window)
                )
                assert mask[a * 3 + j, t] == seen
    span = masks.anchor_span(jnp.asarray(segments), jnp.asarray([anchors]), 3, window)
    np.testing.assert_array_equal(span.mask(15)[0], mask)
