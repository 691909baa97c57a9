import numpy as np
import pytest

from flexdraft_jax.data.pipeline import row_loader


class _Rows:
    """Rows whose only token is their own index."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return {"tokens": np.full(4, index, np.int32)}


def _ids(iterator, batches=None):
    found = []
    for batch in iterator:
        found.append(batch["tokens"][:, 0].tolist())
        if len(found) == batches:
            break
    return found


def _flat(batches):
    return [row for batch in batches for row in batch]


def test_an_epoch_holds_every_row_once_in_shuffled_order():
    batches = _ids(row_loader(_Rows(24), batch_size=4, seed=0, num_epochs=1))
    assert sorted(_flat(batches)) == list(range(24))
    assert _flat(batches) != list(range(24))
    assert [len(batch) for batch in batches] == [4] * 6


def test_epochs_and_seeds_differ_and_seeds_reproduce():
    two = _flat(_ids(row_loader(_Rows(24), batch_size=4, seed=5, num_epochs=2)))
    assert sorted(two[:24]) == sorted(two[24:]) == list(range(24))
    assert two[:24] != two[24:]
    assert two == _flat(_ids(row_loader(_Rows(24), batch_size=4, seed=5, num_epochs=2)))
    assert two != _flat(_ids(row_loader(_Rows(24), batch_size=4, seed=99, num_epochs=2)))


def test_a_batch_never_spans_two_epochs():
    batches = _ids(row_loader(_Rows(10), batch_size=4, seed=0, num_epochs=3))
    assert len(batches) == 6
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(set(first + second)) == 8


def test_without_num_epochs_there_is_no_end():
    assert len(_ids(row_loader(_Rows(4), batch_size=4, seed=0), batches=20)) == 20


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 11])
def test_resume_continues_with_exactly_the_next_batch(stop):
    def new():
        return row_loader(_Rows(25), batch_size=4, seed=1, num_epochs=2)

    whole = _ids(new())
    interrupted = new()
    for _ in range(stop):
        next(interrupted)
    state = interrupted.get_state()
    for _ in range(min(3, len(whole) - stop)):
        next(interrupted)  # what is read after saving must not matter
    resumed = new()
    resumed.set_state(state)
    assert _ids(resumed) == whole[stop:]
    interrupted.set_state(state)
    assert _ids(interrupted) == whole[stop:]


@pytest.mark.parametrize("rows", [24, 29])
def test_processes_read_disjoint_rows_and_equally_many(rows):
    shards = [
        _ids(
            row_loader(
                _Rows(rows), batch_size=2, seed=3, num_epochs=1, process_index=i, process_count=3
            )
        )
        for i in range(3)
    ]
    assert {len(shard) for shard in shards} == {rows // 6}
    read = _flat(_flat(shards))
    assert len(read) == len(set(read)) == rows // 6 * 6


def test_global_batches_do_not_depend_on_the_number_of_processes():
    alone = _ids(row_loader(_Rows(26), batch_size=6, seed=3, num_epochs=2))
    shards = [
        _ids(
            row_loader(
                _Rows(26), batch_size=3, seed=3, num_epochs=2, process_index=i, process_count=2
            )
        )
        for i in range(2)
    ]
    assert [a + b for a, b in zip(*shards, strict=True)] == alone


def test_a_place_in_the_data_serves_any_number_of_processes():
    alone = row_loader(_Rows(26), batch_size=6, seed=3)
    for _ in range(5):
        next(alone)
    half = row_loader(_Rows(26), batch_size=3, seed=3, process_index=1, process_count=2)
    half.set_state(alone.get_state())
    assert next(half)["tokens"][:, 0].tolist() == next(alone)["tokens"][3:, 0].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 9}, "batch_size=9 .* the source has 8"),
        ({"batch_size": 5, "process_count": 2}, "at least 10 rows"),
        ({"seed": -1}, "seed"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"process_index": 1}, "process_index=1, process_count=1"),
        ({"process_index": -1}, "process_index"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        row_loader(_Rows(8), **({"batch_size": 4, "seed": 0} | changes))
