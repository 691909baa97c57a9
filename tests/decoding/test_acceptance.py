"""Acceptance and verify length against plain Python."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flexdraft_jax.decoding.acceptance import accept_matching
from flexdraft_jax.decoding.confidence import choose_verify_length, slot_confidence
from flexdraft_jax.decoding.program import fixed_variants
from flexdraft_jax.decoding.sizes import bucket, slot_bucket

ROWS, SIZE = 3, 6


def arrays(low: int, high: int, *shape: int):
    count = int(np.prod(shape))
    values = st.lists(st.integers(low, high), min_size=count, max_size=count)
    return values.map(lambda flat: np.array(flat, np.int32).reshape(shape))


@settings(deadline=None)
@given(arrays(0, 2, ROWS, SIZE), arrays(0, 2, ROWS, SIZE), arrays(0, SIZE - 1, ROWS))
def test_accept_matching(predicted, candidates, verify_length):
    verdict = accept_matching(*map(jnp.asarray, (predicted, candidates, verify_length)))
    for row in range(ROWS):
        a = 0
        while a < verify_length[row] and predicted[row, a] == candidates[row, a + 1]:
            a += 1
        assert verdict.num_accepted[row] == a
        assert verdict.bonus[row] == predicted[row, a]


@settings(deadline=None)
@given(arrays(0, 8, ROWS, SIZE), arrays(0, 8, ROWS))
def test_choose_verify_length(confidence, threshold):
    # Powers of two: products are exact, so that ties at the threshold are real ties.
    confidence, threshold = 0.5**confidence, 0.5**threshold * (threshold < 8)
    args = jnp.asarray(confidence, jnp.float32), jnp.asarray(threshold, jnp.float32)
    product = choose_verify_length(*args, "cumulative_product")
    minimum = choose_verify_length(*args, "min_confidence")
    for row in range(ROWS):
        kept = sum(np.prod(confidence[row, : j + 1]) >= threshold[row] for j in range(SIZE))
        leading = 0
        while leading < SIZE and confidence[row, leading] >= threshold[row]:
            leading += 1
        assert product[row] == min(max(kept, 1), SIZE)
        assert minimum[row] == min(max(leading, 1), SIZE)


def test_slot_confidence_is_the_largest_probability():
    logits = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(slot_confidence(logits), probabilities.max(-1), rtol=1e-6)


def test_slot_confidence_survives_large_logits():
    np.testing.assert_allclose(slot_confidence(jnp.array([[1e4, 0.0], [-1e4, -1e4]])), [1.0, 0.5])


@given(st.integers(2, 64))
def test_variants_end_at_all_drafts(block_size):
    counts = [v.num_drafts for v in fixed_variants("parallel", block_size, False)]
    assert counts[-1] == block_size - 1 and counts == sorted(set(counts))
    (only,) = fixed_variants("parallel", block_size, True)
    assert only.num_drafts == block_size - 1


@given(st.integers(1, 10_000))
def test_bucket_holds_its_size_with_little_padding(size):
    assert size <= bucket(size) <= max(32, 1.5 * size)
    assert size <= slot_bucket(size) <= (128 if size <= 128 else max(256, 1.5 * size))
