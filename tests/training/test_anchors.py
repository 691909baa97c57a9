"""Where mask groups may stand, against a plain search through the row."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexdraft_jax.training.anchors import sample_groups
from flexdraft_jax.training.rows import Rows

_LENGTH, _ANCHORS, _BLOCK = 24, 6, 4

_sample = jax.jit(sample_groups, static_argnames=("num_anchors", "block_size"))


def _expected_slots(segments: np.ndarray, response: np.ndarray, anchor: int) -> list[bool]:
    """Which slots of a group behind `anchor` continue one response."""
    counted = [False] * _BLOCK
    for slot in range(_BLOCK):
        place = anchor + 1 + slot
        if place >= len(segments) or segments[place] != segments[anchor] or not response[place]:
            break
        counted[slot] = slot > 0
    return counted


@st.composite
def _rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Segments and response mask of a packed row: documents of a prompt and perhaps a response."""
    segments, response = np.zeros(_LENGTH, np.int32), np.zeros(_LENGTH, bool)
    start, segment = 0, 1
    while start < _LENGTH and draw(st.booleans()):
        prompt, answer = draw(st.integers(1, 5)), draw(st.integers(0, 9))
        segments[start : start + prompt + answer] = segment
        response[start + prompt : start + prompt + answer] = True
        start, segment = start + prompt + answer, segment + 1
    return segments, response


@settings(max_examples=60, deadline=None)
@given(_rows(), st.integers(0, 2**31 - 1))
def test_groups_are_exactly_the_fit_ones(row: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    segments, response = row
    tokens = np.arange(100, 100 + _LENGTH, dtype=np.int32)
    groups = _sample(
        jax.random.key(seed),
        Rows(tokens[None], segments[None], segments[None], response[None]),
        num_anchors=_ANCHORS,
        block_size=_BLOCK,
    )
    anchors, labels, counted = (np.asarray(leaf[0]) for leaf in (
        groups.anchors, groups.labels, groups.counted
    ))  # fmt: skip
    fit = [i for i in range(_LENGTH) if any(_expected_slots(segments, response, i))]
    used = [anchor for anchor, slots in zip(anchors, counted, strict=True) if slots.any()]

    assert len(used) == min(_ANCHORS, len(fit))
    assert len(set(used)) == len(used)
    assert set(used) <= set(fit)
    for anchor, slots, group_labels in zip(anchors, counted, labels, strict=True):
        if slots.any():
            assert slots.tolist() == _expected_slots(segments, response, anchor)
        for slot in range(1, _BLOCK):
            if slots[slot]:
                assert group_labels[slot] == tokens[anchor + 1 + slot]
                assert group_labels[0] == tokens[anchor + 1]  # The bonus for the calibration.


def test_the_last_prompt_token_can_be_an_anchor_and_all_fit_places_are_drawn() -> None:
    segments = np.ones((1, 12), np.int32)
    response = np.arange(12)[None] >= 4
    rows = Rows(segments, segments, segments, response)
    seen = set()
    for seed in range(30):
        groups = _sample(jax.random.key(seed), rows, num_anchors=2, block_size=3)
        seen |= set(np.asarray(groups.anchors[0]).tolist())
    assert seen == set(range(3, 10))  # 3 ends the prompt; behind 9 there are two tokens left.


def test_every_document_is_drawn_equally_often_at_first() -> None:
    """Three documents with 2, 6 and 30 fit places: one anchor falls into each a third of times."""
    places, prompt = [2, 6, 30], 3
    # A response of m + 1 tokens has m fit places: the last token of the prompt is one.
    lengths = [prompt + m + 1 for m in places]
    segments = np.repeat([1, 2, 3], lengths)[None]
    response = np.concatenate([np.arange(length) >= prompt for length in lengths])[None]
    rows = Rows(segments, segments, segments, response)
    keys = jax.random.split(jax.random.key(0), 600)
    groups = jax.vmap(lambda key: _sample(key, rows, num_anchors=8, block_size=_BLOCK))(keys)
    document = segments[0][np.asarray(groups.anchors)[:, 0]]  # [600, 8], in the order of draws

    first = np.bincount(document[:, 0], minlength=4)[1:] / 600
    np.testing.assert_allclose(first, 1 / 3, atol=0.07)
    # By places alone, eight anchors would leave the shortest document out in more than half of
    # the rows; now it is nearly always there.
    assert np.mean(np.any(document == 1, axis=1)) > 0.9
    assert np.all(np.sum(document == 1, axis=1) <= 2)


def test_too_many_anchors_are_refused() -> None:
    row = np.ones((1, 8), np.int32)
    with pytest.raises(ValueError, match="anchors=9: must be between 1 and .* 8"):
        sample_groups(jax.random.key(0), Rows(row, row, row, row > 0), num_anchors=9, block_size=2)
