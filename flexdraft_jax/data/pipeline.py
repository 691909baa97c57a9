"""From documents to batches: packing into rows of one length, and a loader that can resume.

documents (EncodedTurn)  --pack-->  rows [T]  --row_loader-->  batches [B, T]
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np
from numpy.typing import NDArray

from flexdraft_jax.data.chat import EncodedTurn

# Rows that stay open for a document that fits; more of them pack tighter and take longer.
_OPEN_ROWS = 64
# The trainer shares the machine with these; a batch is ready in well under a step.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


@dataclass(frozen=True)
class PackedRows:
    """Packed documents: one row, or several with R leading.

    Attributes:
      tokens: [(R,) T] int32, 0 in the padding at the end of a row.
      segment_ids: [(R,) T] int32, 1, 2, ... for the documents of a row, 0 in padding.
      positions: [(R,) T] int32, counted from 0 in every document, 0 in padding.
      response_mask: [(R,) T] bool, True at tokens that the assistant writes.
    """

    tokens: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    response_mask: NDArray[np.bool_]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, as stored rows and batches hold them."""
        return dict(vars(self))


class RowSource(Protocol):
    """Rows by index; each a mapping from the names in :class:`PackedRows` to arrays [T]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Mapping[str, NDArray[Any]]: ...


def pack(turns: Iterable[EncodedTurn], length: int) -> PackedRows:
    """Packs documents into rows; :func:`packed_rows` with all rows at once, [R, T].

    Raises:
      ValueError: if `length` is not positive, a document is empty, or there is none.
    """
    rows = [row.arrays() for row in packed_rows(turns, length)]
    if not rows:
        raise ValueError("turns must hold at least one document, got none")
    return PackedRows(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


def packed_rows(turns: Iterable[EncodedTurn], length: int) -> Iterator[PackedRows]:
    """Packs a stream of documents, each into the first open row that it fits in.

    A document is never split over two rows; one longer than `length` loses its end. Memory is that
    of the open rows, however long the stream.

    Args:
      turns: documents, none of them empty.
      length: T, tokens in a row.

    Yields:
      Rows [T], as they fill up.

    Raises:
      ValueError: if `length` is not positive or a document is empty.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    open_rows: list[_OpenRow] = []
    for index, turn in enumerate(turns):
        size = min(len(turn.tokens), length)
        if size == 0:
            raise ValueError(f"turns must not be empty, turn {index} has no tokens")
        row = next((row for row in open_rows if row.free >= size), None)
        if row is None:
            if len(open_rows) == _OPEN_ROWS:
                fullest = min(open_rows, key=lambda row: row.free)
                open_rows.remove(fullest)
                yield _lay_out(fullest.turns, length)
            row = _OpenRow([], length)
            open_rows.append(row)
        row.turns.append(turn)
        row.free -= size
        if row.free == 0:
            open_rows.remove(row)
            yield _lay_out(row.turns, length)
    for row in open_rows:
        yield _lay_out(row.turns, length)


def row_loader(
    source: RowSource,
    *,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[dict[str, NDArray[Any]]]:
    """Returns an iterator over shuffled batches, whose place can be saved and restored.

    Every epoch is one global shuffle of all rows. Batch i of all processes, one after another, is
    the same whatever the number of processes, as long as their total number of rows is the same.
    Rows of an epoch that do not fill a batch on every process are left out; the next shuffle leaves
    out others.

    Args:
      source: the rows.
      batch_size: B, rows in a batch of this process.
      seed: order of the rows, 0 <= seed < 2**32.
      num_epochs: passes over the rows, None for no end.
      process_index: which share of the rows to read.
      process_count: number of shares; shares are disjoint.

    Returns:
      An iterator over dictionaries of [B, T] arrays, named as in :class:`PackedRows`. Its
      `get_state` and `set_state` resume at exactly the next batch; the state is the same on every
      process and for every number of processes.

    Raises:
      ValueError: if an argument is out of its range, or the source has fewer rows than the
        processes need for one batch each.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..2**32-1, got {seed}")
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, or None for no end, got {num_epochs}")
    if not 0 <= process_index < process_count:
        raise ValueError(
            "process_index must be in 0..process_count-1, "
            f"got process_index={process_index}, process_count={process_count}"
        )
    rows = len(source)
    rows_per_step = batch_size * process_count
    if rows < rows_per_step:
        raise ValueError(
            f"batch_size={batch_size} on process_count={process_count} needs at least "
            f"{rows_per_step} rows, the source has {rows}"
        )
    dataset: Any = grain.MapDataset.source(source).seed(seed).shuffle()
    # Batches of one process first, then every process takes its own: laid side by side they are
    # the batch that one process alone would have read, row by row.
    dataset = dataset.batch(batch_size, drop_remainder=True)
    whole_batches = rows // rows_per_step * process_count
    dataset = dataset.slice(slice(process_index, whole_batches, process_count))
    return iter(dataset.repeat(num_epochs).to_iter_dataset(_READ_OPTIONS))


@dataclass
class _OpenRow:
    turns: list[EncodedTurn]
    free: int


def _lay_out(turns: list[EncodedTurn], length: int) -> PackedRows:
    row = PackedRows(
        tokens=np.zeros(length, np.int32),
        segment_ids=np.zeros(length, np.int32),
        positions=np.zeros(length, np.int32),
        response_mask=np.zeros(length, np.bool_),
    )
    start = 0
    for segment, turn in enumerate(turns, start=1):
        stop = min(start + len(turn.tokens), length)
        row.tokens[start:stop] = turn.tokens[: stop - start]
        row.segment_ids[start:stop] = segment
        row.positions[start:stop] = np.arange(stop - start)
        row.response_mask[start:stop] = turn.response_mask[: stop - start]
        start = stop
    return row
