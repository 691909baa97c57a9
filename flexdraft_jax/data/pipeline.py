"""Packed rows: documents laid side by side in rows of one length."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexdraft_jax.data.chat import EncodedTurn

# Rows that stay open for a document that fits; more of them pack tighter and take longer.
_OPEN_ROWS = 64


@dataclass(frozen=True)
class PackedRows:
    """Rows of packed documents.

    Attributes:
      tokens: [R, T] int32, 0 in the padding at the end of a row.
      segment_ids: [R, T] int32, 1, 2, ... for the documents of a row, 0 in padding.
      positions: [R, T] int32, counted from 0 in every document, 0 in padding.
      response_mask: [R, T] bool, True at tokens that the assistant writes.
    """

    tokens: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    response_mask: NDArray[np.bool_]


def pack(turns: Iterable[EncodedTurn], length: int) -> PackedRows:
    """Packs documents into rows, each into the first open row that it fits in.

    A document is never split over two rows; one longer than `length` loses its end.

    Args:
      turns: documents, none of them empty.
      length: T, tokens in a row.

    Raises:
      ValueError: if `length` is not positive, a document is empty, or there is none.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    rows: list[list[EncodedTurn]] = []
    open_rows: dict[int, int] = {}  # row -> free tokens, in order of opening
    for index, turn in enumerate(turns):
        size = min(len(turn.tokens), length)
        if size == 0:
            raise ValueError(f"turns must not be empty, turn {index} has no tokens")
        row = next((row for row, free in open_rows.items() if free >= size), None)
        if row is None:
            if len(open_rows) == _OPEN_ROWS:
                del open_rows[min(open_rows, key=open_rows.__getitem__)]
            row = len(rows)
            rows.append([])
            open_rows[row] = length
        rows[row].append(turn)
        open_rows[row] -= size
    if not rows:
        raise ValueError("turns must hold at least one document, got none")
    return _lay_out(rows, length)


def _lay_out(rows: list[list[EncodedTurn]], length: int) -> PackedRows:
    shape = (len(rows), length)
    packed = PackedRows(
        tokens=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        response_mask=np.zeros(shape, np.bool_),
    )
    for row, turns in enumerate(rows):
        start = 0
        for segment, turn in enumerate(turns, start=1):
            stop = min(start + len(turn.tokens), length)
            span = slice(start, stop)
            packed.tokens[row, span] = turn.tokens[: stop - start]
            packed.segment_ids[row, span] = segment
            packed.positions[row, span] = np.arange(stop - start)
            packed.response_mask[row, span] = turn.response_mask[: stop - start]
            start = stop
    return packed
