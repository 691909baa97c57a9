"""Warps against plain NumPy and against Hugging Face; draws where they are certain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flexdraft_jax.decoding.acceptance import accept_by_rejection
from flexdraft_jax.decoding.sampling import (
    Purpose,
    RowSampling,
    draw_token,
    probabilities,
    warp,
)

SIZE = 8
INF, NAN = float("inf"), float("nan")


def sampling_of(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, rows: int = 1) -> RowSampling:
    return RowSampling(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        min_p=jnp.full(rows, min_p, jnp.float32),
        seed=jnp.arange(rows, dtype=jnp.uint32),
        row_id=jnp.zeros(rows, jnp.uint32),
    )


_warp = jax.jit(warp)


def warped(logits, **arguments) -> np.ndarray:
    """The distribution [V] that one row's logits [V] are warped to."""
    logits = jnp.asarray(logits, jnp.float32)[None, None]
    return np.asarray(jax.nn.softmax(_warp(logits, sampling_of(**arguments)))[0, 0])


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def reference(logits, temperature, top_k, top_p, min_p) -> np.ndarray:
    """The same in float64, by sorting."""
    x = np.array(logits, np.float64) / temperature
    if top_k:
        x[x < np.sort(x)[::-1][min(top_k, x.size) - 1]] = -INF
    if top_p < 1:
        falling = np.sort(x)[::-1]
        last = np.argmax(np.cumsum(softmax(falling)) >= top_p)
        x[x < falling[last]] = -INF
    if min_p:
        x[x < x.max() + np.log(min_p)] = -INF
    return softmax(x)


# Few different values, so that ties are common.
LOGITS = st.lists(
    st.sampled_from([-INF, -40.0, -2.0, -1.0, 0.0, 0.5, 1.0, 30.0]), min_size=SIZE, max_size=SIZE
)
SHARES = st.one_of(st.sampled_from([1e-6, 0.5, 1.0]), st.floats(1e-6, 1))


def near(share: float) -> list[float]:
    return [share] if share in (0, 1) else [share * (1 - 1e-5), min(share * (1 + 1e-5), 1)]


@settings(deadline=None, max_examples=300)
@given(
    LOGITS,
    st.sampled_from([0.25, 1.0, 2.0]),
    st.integers(0, SIZE + 2),
    SHARES,
    st.one_of(st.just(0.0), SHARES),
)
def test_warp_equals_the_reference(logits, temperature, top_k, top_p, min_p):
    assume(max(logits) > -INF)
    expected = reference(logits, temperature, top_k, top_p, min_p)
    for near_p in near(top_p):
        for near_min in near(min_p):
            # Within rounding of a threshold another answer is right as well.
            other = reference(logits, temperature, top_k, near_p, near_min)
            assume(np.array_equal(other, expected))
    found = warped(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_array_equal(found > 0, expected.astype(np.float32) > 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 1}, [4]),
        ({"top_k": 2}, [1, 3, 4]),  # 1 and 3 are equally likely
        ({"top_k": 6}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 2**31 - 1}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 1e-30}, [4]),
        ({"top_p": 0.6}, [1, 3, 4]),
        ({"min_p": 1.0}, [4]),
        ({"min_p": 1e-30}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 5, "top_p": 0.95, "min_p": 0.3}, [1, 3, 4]),
    ],
)
def test_what_each_filter_keeps(arguments, kept):
    logits = [-1.0, 2.0, 0.0, 2.0, 3.0, 1.0, -INF]
    assert np.flatnonzero(warped(logits, **arguments)).tolist() == kept


def test_filters_come_in_the_order_of_hugging_face():
    """Top-p counts among what top-k left: 0.4 / 0.7 is enough for 0.5, and 0.4 alone is not."""
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert np.count_nonzero(warped(logits, top_p=0.5)) == 2
    assert np.count_nonzero(warped(logits, top_p=0.5, top_k=2)) == 1
    assert np.count_nonzero(warped(logits, top_p=0.5, temperature=0.5)) == 1


def test_each_row_has_its_own_settings():
    logits = np.random.default_rng(0).normal(size=(4, 3, SIZE)).astype(np.float32)
    rows = [(1.0, 0, 1.0, 0.0), (0.5, 3, 1.0, 0.0), (2.0, 0, 0.6, 0.0), (1.0, 4, 0.9, 0.2)]
    columns = [jnp.asarray(np.array(column, np.float32)) for column in zip(*rows, strict=True)]
    zeros = jnp.zeros(4, jnp.uint32)
    sampling = RowSampling(
        columns[0], columns[1].astype(jnp.int32), columns[2], columns[3], zeros, zeros
    )
    found = np.asarray(probabilities(jnp.asarray(logits), sampling))
    for row, slot in np.ndindex(4, 3):
        np.testing.assert_allclose(
            found[row, slot], reference(logits[row, slot], *rows[row]), atol=1e-6
        )


@pytest.mark.parametrize("temperature", [1e-30, 2e-38])
def test_a_temperature_near_zero_draws_the_largest(temperature):
    logits = jnp.array([[[-30.0, 29.0, 30.0, 29.9]]])
    positions = jnp.zeros((1, 1), jnp.int32)
    drawn = draw_token(logits, sampling_of(temperature), positions, Purpose.TOKEN)
    assert drawn.tolist() == [[2]]
    np.testing.assert_array_equal(probabilities(logits, sampling_of(temperature))[0, 0, 2], 1)


def test_one_token_left_is_the_one_that_is_drawn():
    logits = jnp.where(jnp.arange(SIZE) == 5, 0.0, -jnp.inf) * jnp.ones((64, 1, SIZE))
    positions = jnp.zeros((64, 1), jnp.int32)
    drawn = draw_token(logits, sampling_of(rows=64), positions, Purpose.TOKEN)
    assert set(np.ravel(drawn)) == {5}


@pytest.mark.parametrize("bad", [NAN, -NAN])
@pytest.mark.parametrize(
    "arguments", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"temperature": 0.0}]
)
def test_nan_draws_no_token_under_any_rule(bad, arguments):
    """V is no token, and `generate` reports it."""
    logits = jnp.array([[[1.0, 2.0, bad, 0.0]] * 3])
    sampling = sampling_of(**arguments)
    positions = jnp.arange(3)[None]
    assert draw_token(logits, sampling, positions, Purpose.TOKEN).tolist() == [[4] * 3]
    p = probabilities(logits, sampling)
    assert np.isnan(p).all()
    q = jnp.full((1, 2, 4), 0.25)
    candidates = jnp.array([[0, 1, 1]])
    for v in (0, 2):
        verdict = accept_by_rejection(p, q, candidates, jnp.array([v]), sampling, positions)
        assert (verdict.num_accepted[0], verdict.bonus[0]) == (0, 4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("top_k", [0, 1, 5, 60])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.01])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
def test_warp_equals_that_of_hugging_face(temperature, top_k, top_p, min_p):
    torch = pytest.importorskip("torch", reason="parity with Hugging Face's warpers needs torch")
    import transformers

    warpers = [transformers.TemperatureLogitsWarper(temperature)]
    warpers += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [transformers.MinPLogitsWarper(min_p)] if min_p else []
    rng = np.random.default_rng(1)
    for logits in rng.normal(scale=2, size=(8, 50)).astype(np.float32):  # no ties
        scores = transformers.LogitsProcessorList(warpers)(None, torch.tensor(logits)[None])
        expected = torch.softmax(scores, dim=-1)[0].numpy()
        found = warped(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
