import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from flexdraft_jax.data.builder import TurnSource, prepare_rows
from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.pipeline import pack, row_loader


def _turns(count, seed=0):
    rng = np.random.default_rng(seed)
    turns = []
    for size in rng.integers(1, 30, count):
        tokens = rng.integers(1, 260, size).tolist()
        turns.append(EncodedTurn(tokens, [place > 3 for place in range(size)]))
    return turns


def _source(name, **splits):
    return TurnSource(name, "f1", {split: partial(list, turns) for split, turns in splits.items()})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def _stack(rows):
    return {name: np.stack([rows[i][name] for i in range(len(rows))]) for name in rows[0]}


def test_rows_come_back_as_they_were_packed(data_dir):
    splits = {"train": _turns(300), "held_out": _turns(20, seed=1)}
    rows = prepare_rows(_source("rollouts", **splits), length=32, data_dir=data_dir)
    assert rows.keys() == splits.keys()
    for split, turns in splits.items():
        expected = pack(turns, 32).arrays()
        found = _stack(rows[split])
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)


def test_rows_are_built_once_and_rebuilt_identically(data_dir, tmp_path):
    calls = []

    def documents():
        calls.append(1)
        return _turns(100)

    source = TurnSource("counted", "f1", {"train": documents})
    first = prepare_rows(source, length=32, data_dir=data_dir)["train"]
    again = prepare_rows(source, length=32, data_dir=data_dir)["train"]
    assert len(calls) == 1
    rebuilt = prepare_rows(source, length=32, data_dir=tmp_path)["train"]
    assert len(calls) == 2
    for other in (again, rebuilt):
        for name, values in _stack(first).items():
            np.testing.assert_array_equal(_stack(other)[name], values)


def test_other_documents_or_lengths_are_other_rows(data_dir):
    one = TurnSource("turns", "f1", {"train": partial(_turns, 10)})
    other = TurnSource("turns", "f2", {"train": partial(_turns, 10, seed=1)})
    for source in (one, other):
        for length in (32, 48):
            row = prepare_rows(source, length=length, data_dir=data_dir)["train"][0]
            expected = pack(source.splits["train"](), length).tokens[0]
            np.testing.assert_array_equal(row["tokens"], expected)


def test_an_interrupted_build_leaves_no_rows(data_dir):
    def broken():
        yield from _turns(20)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        prepare_rows(TurnSource("cut", "f1", {"train": broken}), length=32, data_dir=data_dir)
    whole = TurnSource("cut", "f1", {"train": lambda: _turns(40)})
    rows = prepare_rows(whole, length=32, data_dir=data_dir)["train"]
    assert len(rows) == len(pack(_turns(40), 32).tokens)


def test_stored_rows_feed_the_loader_and_resume(data_dir):
    source = _source("loaded", train=_turns(200))
    rows = prepare_rows(source, length=32, data_dir=data_dir)["train"]
    iterator = row_loader(rows, batch_size=8, seed=0)
    next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(20)]
    resumed = row_loader(rows, batch_size=8, seed=0)
    resumed.set_state(state)
    for batch in expected:
        found = next(resumed)
        assert found["tokens"].shape == (8, 32)
        for name, values in batch.items():
            np.testing.assert_array_equal(found[name], values)


def test_bad_sources_are_refused(data_dir):
    empty = _source("empty", train=[])
    with pytest.raises(ValueError, match=r"splits\['train'\]"):
        prepare_rows(empty, length=32, data_dir=data_dir)
    with pytest.raises(ValueError, match="length"):
        prepare_rows(_source("x", train=_turns(3)), length=4, data_dir=data_dir)
    with pytest.raises(ValueError, match="name"):
        TurnSource("a/b", "f1", {"train": list})
    with pytest.raises(ValueError, match="splits"):
        TurnSource("a", "f1", {})


def test_nothing_imports_tensorflow(tmp_path):
    """In a process of its own: other tests may have imported anything."""
    program = f"""
import sys
from flexdraft_jax.data.builder import TurnSource, prepare_rows
from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.pipeline import row_loader
turns = [EncodedTurn([1, 2, 3], [False, True, True])] * 9
source = TurnSource("a", "f1", {{"train": lambda: turns}})
rows = prepare_rows(source, length=8, data_dir={str(tmp_path)!r})["train"]
next(row_loader(rows, batch_size=2, seed=0))
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
