from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.pipeline import pack


def _turn(tokens, prompt_length):
    return EncodedTurn(tokens, [place >= prompt_length for place in range(len(tokens))])


_TURNS = st.lists(
    st.builds(_turn, st.lists(st.integers(1, 259), min_size=1, max_size=12), st.integers(0, 12)),
    min_size=1,
    max_size=200,
)


def _documents(rows):
    """Reads the documents back out of packed rows."""
    for row in range(len(rows.tokens)):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            places = np.flatnonzero(rows.segment_ids[row] == segment)
            assert (np.diff(places) == 1).all()
            assert (rows.positions[row, places] == np.arange(len(places))).all()
            yield tuple(rows.tokens[row, places]), tuple(rows.response_mask[row, places])


@given(_TURNS, st.integers(1, 16))
@settings(deadline=None)
def test_every_document_stands_whole_in_exactly_one_row(turns, length):
    rows = pack(turns, length)
    expected = Counter(
        (tuple(turn.tokens[:length]), tuple(turn.response_mask[:length])) for turn in turns
    )
    assert Counter(_documents(rows)) == expected


@given(_TURNS, st.integers(1, 16))
@settings(deadline=None)
def test_padding_is_zero_and_only_at_the_end(turns, length):
    rows = pack(turns, length)
    padding = rows.segment_ids == 0
    for values in (rows.tokens, rows.positions, rows.response_mask):
        assert values.shape == (len(rows.tokens), length)
        assert not values[padding].any()
    # Segments count 1, 2, ... and padding follows the last.
    steps = np.diff(rows.segment_ids, axis=1)
    assert ((steps == 0) | (steps == 1) | (rows.segment_ids[:, 1:] == 0)).all()
    assert (rows.segment_ids[:, 0] == 1).all()
    assert rows.tokens.dtype == rows.segment_ids.dtype == rows.positions.dtype == np.int32
    assert rows.response_mask.dtype == np.bool_


def test_a_later_short_document_fills_an_earlier_gap():
    turns = [_turn([1] * size, 0) for size in (6, 5, 2, 3)]
    rows = pack(turns, 8)
    assert rows.segment_ids.tolist() == [[1] * 6 + [2] * 2, [1] * 5 + [2] * 3]


def test_rows_are_well_filled_with_many_documents():
    rng = np.random.default_rng(0)
    turns = [_turn([1] * int(size), 0) for size in rng.integers(10, 100, 2000)]
    assert (pack(turns, 128).segment_ids > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("turns", "length", "message"),
    [
        ([], 8, "none"),
        ([_turn([1], 0)], 0, "length"),
        ([_turn([1], 0), _turn([], 0)], 8, "turn 1"),
    ],
)
def test_bad_input_is_refused(turns, length, message):
    with pytest.raises(ValueError, match=message):
        pack(turns, length)
