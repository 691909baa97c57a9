import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from flexdraft_jax.data import encoded
from flexdraft_jax.data.chat import EncodedTurn, build_byte_tokenizer, encode_turn
from flexdraft_jax.data.encoded import encode_lines, load_chunk
from flexdraft_jax.data.fingerprints import tokenizer_fingerprint
from flexdraft_jax.data.prepare import PrepareConfig, prepare
from flexdraft_jax.data.prepared import load_prepared
from flexdraft_jax.parallel.locks import locked

_TOKENIZER = build_byte_tokenizer()
_CONFIG = PrepareConfig(sequence_length=48, held_out=4)
_BAD = [b"{", b'{"prompt": "\xff"}', b'{"prompt": "Hi", "response": ""}', b'{"prompt": "Hi"}']


def _good(index: int) -> bytes:
    return json.dumps(
        {"prompt": f"Count to {index}", "response": "one " * (index % 5 + 1)}
    ).encode()


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Forty conversations, two of them with the same prompt, four bad lines and a long prompt."""
    good = [_good(index) for index in range(39)]
    good.append(json.dumps({"prompt": "Count to 3", "response": "no"}).encode())
    long = json.dumps({"prompt": "x" * 50, "response": "y"}).encode()
    return good[:7] + _BAD[:2] + good[7:20] + _BAD[2:] + [long] + good[20:]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "CHUNK_LINES", 10)


@pytest.fixture(scope="module")
def file(lines, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("input") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="module")
def built(file, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("built") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "CHUNK_LINES", 10)
        prepare(file, _TOKENIZER, output, _CONFIG)
    return output


def _documents(rows) -> list[EncodedTurn]:
    """Reads the documents back out of packed rows."""
    found = []
    for index in range(len(rows)):
        row = rows[index]
        for segment in range(1, row["segment_ids"].max() + 1):
            places = row["segment_ids"] == segment
            mask = row["response_mask"][places].tolist()
            found.append(EncodedTurn(row["tokens"][places].tolist(), mask))
    return found


def _texts(turns) -> list[bytes]:
    return sorted(bytes(t for t in turn.tokens if t < 256) for turn in turns)


def test_every_good_line_is_in_the_rows_or_held_out(built, lines):
    prepared = load_prepared(built)
    held_out = [bytes(t for t in prompt.tokens if t < 256) for prompt in prepared.held_out]
    assert len(set(held_out)) == 4
    expected = []
    for line in lines:
        try:
            fields = json.loads(line)
            turn = encode_turn(_TOKENIZER, fields["prompt"], fields["response"])
        except (ValueError, KeyError):
            continue
        if turn.response_mask.index(True) < 48 and fields["response"]:
            if fields["prompt"].encode() not in held_out:
                expected.append(turn)
            else:
                reference = turn.tokens[len(turn.prompt_tokens) :]
                place = held_out.index(fields["prompt"].encode())
                assert prepared.held_out[place].tokens == turn.prompt_tokens
                assert prepared.held_out[place].text == f"<|user|>{fields['prompt']}<|assistant|>"
                assert prepared.held_out[place].reference == reference
    found = _documents(prepared.rows)
    assert _texts(found) == _texts(expected)
    for turn in found:
        assert turn in expected


def test_the_report_adds_up(built):
    report = load_prepared(built).report
    assert (report.lines, report.conversations, report.held_out) == (45, 40, 4)
    assert report.dropped == {
        "not JSON": 1,
        "not UTF-8": 1,
        "empty message": 1,
        "no assistant turn": 1,
        "prompt too long": 1,
    }
    rows = load_prepared(built).rows
    documents = _documents(rows)
    assert report.documents == len(documents)
    assert report.tokens == sum(len(turn.tokens) for turn in documents)
    assert report.response_tokens == sum(sum(turn.response_mask) for turn in documents)
    assert report.rows == len(rows)
    assert report.fill == report.tokens / (len(rows) * 48)
    assert ("dropped, not JSON", "1") in report.cells()


def test_rejected_lines_are_told_with_number_and_reason(built, lines):
    rejected = [json.loads(line) for line in (built / "rejected.jsonl").read_text().splitlines()]
    assert [bad["line"] for bad in rejected] == [8, 9, 23, 24, 25]
    assert rejected[0]["start"] == "{" and rejected[0]["reason"].startswith("not JSON: ")
    assert "no assistant turn" in rejected[3]["reason"]
    assert "behind 52 tokens, a row has 48" in rejected[4]["reason"]


def test_prompts_held_out_do_not_depend_on_order_or_number(built, lines, tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"\n".join(reversed(lines)))
    more = prepare(path, _TOKENIZER, tmp_path / "b", PrepareConfig(48, held_out=6))
    before = load_prepared(built)
    assert [prompt.text for prompt in more.held_out[:4]] == [p.text for p in before.held_out]
    assert more.fingerprint != before.fingerprint


def test_a_build_resumes_and_ends_the_same(file, built, tmp_path, monkeypatch):
    chunk, calls = encoded._chunk, []

    def count(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return chunk(*args)

    monkeypatch.setattr(encoded, "_chunk", count)
    output = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        prepare(file, _TOKENIZER, output, _CONFIG)
    with pytest.raises(ValueError, match="no finished data"):
        load_prepared(output)
    shown = []

    @contextmanager
    def track(what, total):
        done = []
        yield done.append
        shown.append((what, total, sum(done)))

    resumed = prepare(file, _TOKENIZER, output, _CONFIG, track)
    assert len(calls) == 6  # Five chunks, one of them begun twice.
    documents = resumed.report.documents
    assert shown == [("encoding", 45, 45), ("packing", documents, documents)]
    whole = load_prepared(built)
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.held_out == whole.held_out
    assert len(resumed.rows) == len(whole.rows)
    for index in range(len(whole.rows)):
        for name, values in whole.rows[index].items():
            np.testing.assert_array_equal(resumed.rows[index][name], values)
    prepare(file, _TOKENIZER, output, _CONFIG, track)
    assert len(shown) == 2  # Nothing is left to do.


def test_documents_are_cut_to_a_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": letter * 20}) + "\n" for letter in "ab"))
    prepared = prepare(path, _TOKENIZER, tmp_path / "data", PrepareConfig(16, held_out=0))
    assert prepared.report.cut == 2
    assert (prepared.report.tokens, prepared.report.response_share) == (32, 1.0)
    assert _texts(_documents(prepared.rows)) == [b"a" * 16, b"b" * 16]
    assert prepared.held_out == []


def test_token_ids_are_kept_and_their_prompts_held_out_with_all_turns(tmp_path):
    """Two documents of one conversation: no part of a held-out one may be trained on."""
    fingerprint = tokenizer_fingerprint(_TOKENIZER)
    lines = []
    for first in range(10, 30):
        user = {"role": "user", "content": str(first)}
        for size in (3, 6):
            tokens = [first] * (size - 1) + [7]
            mask = [False] * (size - 1) + [True]
            messages = [user, {"role": "assistant", "content": "x"}] * (size // 3)
            fields = {"tokens": tokens, "response_mask": mask, "messages": messages}
            lines.append(json.dumps({**fields, "tokenizer": fingerprint, "domain": "d"}))
    lines.append(json.dumps({"tokens": [5], "response_mask": [True], "tokenizer": "other"}))
    lines.append(json.dumps({"tokens": [260], "response_mask": [True]}))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    prepared = prepare(path, _TOKENIZER, tmp_path / "data", PrepareConfig(8, held_out=5))
    held_out = {prompt.tokens[0] for prompt in prepared.held_out}
    assert all(len(prompt.tokens) == 2 for prompt in prepared.held_out)
    assert {prompt.domain for prompt in prepared.held_out} == {"d"}
    trained = {turn.tokens[0] for turn in _documents(prepared.rows)}
    assert len(held_out) == 5 and trained == set(range(10, 30)) - held_out
    assert prepared.report.dropped == {
        "tokens of another tokenizer": 1,
        "token id outside the vocabulary": 1,
    }


def test_other_input_settings_or_folders_are_refused(file, built, tmp_path):
    with pytest.raises(ValueError, match="sequence_length was 48, is 64"):
        prepare(file, _TOKENIZER, built, PrepareConfig(64, 4))
    other = tmp_path / "other.jsonl"
    other.write_bytes(_good(1))
    with pytest.raises(ValueError, match="the input has other content"):
        prepare(other, _TOKENIZER, built, _CONFIG)
    with pytest.raises(ValueError, match="template_kwargs was"):
        prepare(file, _TOKENIZER, built, PrepareConfig(48, 4, {"a": 1}))
    with pytest.raises(ValueError, match="holds other files"):
        prepare(file, _TOKENIZER, other.parent, _CONFIG)


def test_nothing_left_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(_BAD))
    with pytest.raises(ValueError, match="no line of 4 can be used: .*'not JSON': 1"):
        prepare(path, _TOKENIZER, tmp_path / "bad", _CONFIG)
    assert len((tmp_path / "bad" / "rejected.jsonl").read_text().splitlines()) == 4
    path.write_bytes(b"\n".join(map(_good, range(4))))
    with pytest.raises(ValueError, match="held_out=4: leaves nothing"):
        prepare(path, _TOKENIZER, tmp_path / "all", _CONFIG)
    with pytest.raises(ValueError, match="held_out=5: must be under .* prompts, 4; plain"):
        prepare(path, _TOKENIZER, tmp_path / "more", PrepareConfig(48, 5))


def test_damaged_and_foreign_folders_are_refused(file, tmp_path):
    output = tmp_path / "data"
    prepare(file, _TOKENIZER, output, _CONFIG)
    (rows,) = (output / "rows").rglob("*.array_record*")
    whole = rows.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    rows.write_bytes(flipped)
    with pytest.raises(ValueError, match="is not as it was written"):
        load_prepared(output)
    rows.unlink()
    with pytest.raises(ValueError, match="is missing"):
        load_prepared(output)
    rows.write_bytes(whole)
    assert len(load_prepared(output).rows) > 0
    with pytest.raises(ValueError, match=r"no finished data .*prepare_data\.py"):
        load_prepared(tmp_path)
    record = json.loads((output / "prepared.json").read_text())
    for change in ({"sequence_length": 49}, {"files": []}, {"fingerprint": "a"}):
        (output / "prepared.json").write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match="no finished data .*is not as it was written"):
            load_prepared(output)
    (output / "prepared.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0, must be 1: prepare it again"):
        load_prepared(output)


def test_a_damaged_chunk_is_named(file, tmp_path):
    path, *_ = encode_lines(
        file, tmp_path, _TOKENIZER, length=48, template_kwargs={}, advance=lambda count: None
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damage in (bytes(content), content[:100], b"", b"\x93NUMPY"):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="00000.npz: is damaged .* remove it, and it is made"):
            load_chunk(path)


def test_one_run_at_a_time_builds_in_a_folder(file, built):
    with locked(built / "lock", "the other"):
        with pytest.raises(ValueError, match="data': another run is writing there"):
            prepare(file, _TOKENIZER, built, _CONFIG)
    prepare(file, _TOKENIZER, built, _CONFIG)


@pytest.mark.parametrize(("field", "value"), [("sequence_length", 7), ("held_out", -1)])
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        PrepareConfig(**{field: value})
