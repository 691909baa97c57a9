"""Responses rewritten by the target: what they are, and that nothing else decides them."""

import dataclasses
import json
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import flexdraft_jax as fd
from flexdraft_jax.data.conversations import Tokenized, parse_line, read_lines
from flexdraft_jax.data.fingerprints import tokenizer_fingerprint
from flexdraft_jax.data.prepare import PrepareConfig, prepare
from flexdraft_jax.decoding.sizes import bucket
from flexdraft_jax.models.target import TargetModel
from flexdraft_jax.parallel.locks import locked
from flexdraft_jax.training import rewriting
from flexdraft_jax.training.regenerate import (
    RegenerateReport,
    begin,
    merge_parts,
    regenerate,
    sealed,
    write_part,
)
from flexdraft_jax.training.rewriting import Writer

_CONFIG = fd.TargetConfig(
    model_type="qwen3",
    vocab_size=260,
    hidden_size=16,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    qk_norm=True,
    tie_word_embeddings=True,
    max_position_embeddings=32,
    # A random model seldom writes its end token; some bytes end a turn as well.
    eos_token_ids=(258, *range(0, 256, 12)),
)
_BATCH = 5
_NEW_TOKENS = 6


def _line(*contents: str) -> str:
    roles = ("user", "assistant")
    return json.dumps({
        "messages": [
            {"role": roles[place % 2], "content": text} for place, text in enumerate(contents)
        ],
        "domain": "d",
    })  # fmt: skip


# All prompts fall into one bucket: every bucket is a program to compile.
_LINES = [
    _line("How many?", "Three."),
    "{",
    *(_line("x" * size, "y") for size in (1, 25, 3, 20, 9)),
    _line("Unanswered"),
    json.dumps({"text": "no turns"}),
    _line("z" * 47, "Too long"),
    _line("Hi", "Ho", "More", "No"),
    _line("a" * 20, "b", "c" * 30, "outgrows the positions"),
    *(_line(f"Number {index}?", "y") for index in range(6)),
]


@pytest.fixture(scope="module")
def target() -> fd.Target:
    """Random, and lively enough not to repeat one token for ever."""
    target = fd.init_target(_CONFIG, jax.random.key(0))
    return dataclasses.replace(target, params=jax.tree.map(lambda x: 5 * x, target.params))


@pytest.fixture(scope="module")
def writer(target: fd.Target, tokenizer: PreTrainedTokenizerBase) -> Writer:
    return Writer(target, None, tokenizer, max_new_tokens=_NEW_TOKENS, batch_size=_BATCH)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "a.jsonl"
    path.write_text("\n".join(_LINES) + "\n")
    return path


@pytest.fixture(scope="module")
def written(
    file: Path, writer: Writer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RegenerateReport]:
    output = tmp_path_factory.mktemp("written") / "b.jsonl"
    return output, regenerate(file, output, writer)


def _documents(output: Path) -> list[Tokenized]:
    found = [parse_line(line) for _, line in read_lines(output)]
    assert all(isinstance(document, Tokenized) for document in found)
    return found


def _responses(document: Tokenized) -> list[tuple[list[int], list[int]]]:
    """Every marked stretch, and the tokens before it."""
    found, begin = [], 0
    for marked, stretch in groupby(document.turn.response_mask):
        end = begin + len(list(stretch))
        if marked:
            found.append((document.turn.tokens[:begin], document.turn.tokens[begin:end]))
        begin = end
    return found


def test_every_response_is_what_the_target_predicts(written, target) -> None:
    """By a pass over whole documents, with nothing of the decoder in it."""
    turns = [document.turn for document in _documents(written[0])]
    rows = np.zeros((len(turns), 48), np.int32)
    for row, turn in zip(rows, turns, strict=True):
        row[: len(turn.tokens)] = turn.tokens
    model = TargetModel(target.config)
    logits = jax.jit(model.apply)(
        {"params": target.params},
        rows,
        np.broadcast_to(np.arange(48), rows.shape),
        np.ones_like(rows),
    )
    predicted = np.asarray(logits).argmax(-1)
    for turn, row in zip(turns, predicted, strict=True):
        marked = np.flatnonzero(turn.response_mask)
        assert row[marked - 1].tolist() == np.array(turn.tokens)[marked].tolist()


def test_lines_keep_their_order_and_say_what_they_are(written, writer) -> None:
    output, report = written
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    numbers = [line["line"] for line in lines]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 19)) - {2, 9, 10}
    assert {line["domain"] for line in lines} == {"d"}
    assert {line["tokenizer"] for line in lines} == {tokenizer_fingerprint(writer.tokenizer)}
    first = lines[0]
    assert [m["role"] for m in first["messages"]] == ["user", "assistant"]
    response = [t for t, mark in zip(first["tokens"], first["response_mask"], strict=True) if mark]
    assert first["messages"][1]["content"] == writer.tokenizer.decode(
        response, skip_special_tokens=True
    )
    rejected = output.with_name("b.jsonl.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejected] == [2, 9, 10]
    assert report.dropped == {"not JSON": 1, "no messages": 1, "prompt too long": 1}
    assert (report.lines, report.conversations, report.documents) == (18, 15, len(lines))
    assert report.responses == sum(len(_responses(d)) for d in _documents(output))
    assert report.response_tokens == sum(sum(line["response_mask"]) for line in lines)
    assert 0 < report.cut < report.responses


def test_later_turns_stand_behind_the_rewritten_ones(written, tokenizer) -> None:
    documents = [d for d in _documents(written[0]) if d.messages[0].content == "Hi"]
    assert [m.content for m in documents[-1].messages[::2]] == ["Hi", "More"]
    prompt = tokenizer.decode(_responses(documents[-1])[-1][0])
    history = documents[-1].messages
    assert f"<|assistant|>{history[1].content}<|end|><|user|>More<|assistant|>" in prompt
    assert "Ho" not in prompt


def test_a_conversation_that_outgrows_the_positions_ends_there(written) -> None:
    (document,) = [d for d in _documents(written[0]) if d.messages[0].content == "a" * 20]
    assert len(document.messages) == 2


def test_number_of_processes_changes_nothing(file, written, writer, tmp_path) -> None:
    output = tmp_path / "b.jsonl"
    begin(file, output, writer)
    for index in (1, 0):
        write_part(file, output, writer, index, process_count=2)
    assert len(list(tmp_path.glob("*.part-*"))) == 2
    merge_parts(file, output)
    assert output.read_bytes() == written[0].read_bytes()
    assert not list(tmp_path.glob("*.part-*"))


def test_batch_size_and_draft_change_nothing(file, written, writer, tmp_path) -> None:
    draft = fd.init_draft(
        writer.target, num_draft_layers=1, block_size=3, calibration_rank=4, rng=jax.random.key(1)
    )
    drafted = dataclasses.replace(writer, draft=draft, batch_size=2)
    assert regenerate(file, tmp_path / "b.jsonl", drafted) == written[1]
    assert (tmp_path / "b.jsonl").read_bytes() == written[0].read_bytes()


def test_an_interrupted_run_goes_on_by_row(file, written, writer, tmp_path, monkeypatch) -> None:
    decode, rows = rewriting._decode, []

    def decode_thrice(writer: Writer, prompts: list, size: int) -> list:
        if len(rows) == 3:
            raise KeyboardInterrupt
        rows.append(len(prompts))
        return decode(writer, prompts, size)

    output = tmp_path / "b.jsonl"
    monkeypatch.setattr(rewriting, "_decode", decode_thrice)
    with pytest.raises(KeyboardInterrupt):
        regenerate(file, output, writer)
    (part,) = tmp_path.glob("*.part-*")
    finished = part.read_bytes().count(b"\n")
    assert 0 < finished < 18
    with part.open("ab") as torn:
        torn.write(b'{"line":1')
    before = sum(rows)
    rows.clear()
    monkeypatch.setattr(
        rewriting, "_decode", lambda *args: rows.append(len(args[1])) or decode(*args)
    )
    # On another number of processes, too.
    write_part(file, output, writer, 1, 2)
    with pytest.raises(ValueError, match="lines are not finished"):
        merge_parts(file, output)
    regenerate(file, output, writer)
    assert output.read_bytes() == written[0].read_bytes()
    responses = written[1].responses
    # Only turns of lines that were not finished were answered again.
    assert responses <= before + sum(rows) < responses + before
    calls = len(rows)
    assert regenerate(file, output, writer) == written[1]
    assert len(rows) == calls  # Nothing was left to do.


def test_batches_are_of_one_bucket_and_full_while_they_can_be(writer, monkeypatch) -> None:
    """Array sizes must depend on a row's own prompt alone, and programs must be few."""
    batches = []

    def decode(writer: Writer, prompts: list, size: int) -> list:
        batches.append((size, len(prompts)))
        assert all(bucket(len(prompt)) == size for prompt in prompts)
        return [rewriting._Response([len(prompt) % 256], False) for prompt in prompts]

    monkeypatch.setattr(rewriting, "_decode", decode)
    config = dataclasses.replace(_CONFIG, max_position_embeddings=1000)
    large = dataclasses.replace(writer, target=dataclasses.replace(writer.target, config=config))
    lines = [_line("x" * (7 * i % 90), "y", "z" * 40, "y").encode() for i in range(1, 41)]
    records = [r for rs in rewriting.answer_lines(enumerate(lines), large) for r in rs]
    assert sorted(record["line"] for record in records) == list(range(40))
    assert all(record["responses"] == 2 for record in records)
    assert sum(rows for _, rows in batches) == 80
    assert len({size for size, _ in batches}) > 3
    # At the end each bucket may be left with one batch that is not full, and its later turns.
    assert sum(rows < _BATCH for _, rows in batches) <= 2 * len({size for size, _ in batches})


def test_wrong_settings_are_refused(file, written, writer, tmp_path) -> None:
    with pytest.raises(ValueError, match="max_new_tokens was 6, is 7"):
        regenerate(file, written[0], dataclasses.replace(writer, max_new_tokens=7))
    with pytest.raises(ValueError, match="another file of that name"):
        regenerate(file, file, writer)
    (tmp_path / "d.jsonl.part-00000-of-00001").touch()
    with pytest.raises(ValueError, match="settings that nobody knows"):
        regenerate(file, tmp_path / "d.jsonl", writer)
    with pytest.raises(ValueError, match="batch_size=0"):
        dataclasses.replace(writer, batch_size=0)
    with pytest.raises(ValueError, match=f"batch_size={10**20}: must be .* at most"):
        dataclasses.replace(writer, batch_size=10**20)
    with pytest.raises(ValueError, match='schedule="parallel" needs one'):
        dataclasses.replace(writer, schedule="parallel")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n[]\n")
    with pytest.raises(ValueError, match="no line of 2 can be answered: .*'not JSON': 1"):
        regenerate(bad, tmp_path / "c.jsonl", writer)


@pytest.mark.parametrize("damaged", [b'{"line":', b'{"line":2,"documents"', b"\xff", None])
def test_a_damaged_line_of_a_part_is_named(file, tmp_path, damaged) -> None:
    rejected = {"reason": "a: b", "start": ""}
    records = [sealed({"line": n, "rejected": rejected}) for n in range(1, 19)]
    records[1] = records[1].replace(b"a: b", b"a: c") if damaged is None else damaged + b"\n"
    part = tmp_path / "b.jsonl.part-00000-of-00001"
    part.write_bytes(b"".join(records))
    with pytest.raises(ValueError, match=f"{part.name}: its line 2 is damaged; restore"):
        merge_parts(file, tmp_path / "b.jsonl")


def test_one_run_at_a_time_writes_a_file(file, written, writer) -> None:
    output = written[0]
    with locked(output.with_name(f"{output.name}.lock"), "the other"):
        with pytest.raises(ValueError, match="b.jsonl': another run is writing there"):
            regenerate(file, output, writer)
    assert regenerate(file, output, writer) == written[1]


def _two_hundred(path: Path) -> None:
    """A person's file: 200 lines, three of them bad."""
    lines = [_line(f"What is {index} + {index % 7}?", str(index)) for index in range(197)]
    for place, bad in ((10, "{"), (90, '{"prompt": 7}'), (150, '{"messages": []}')):
        lines.insert(place, bad)
    path.write_text("\n".join(lines) + "\n")


def test_from_a_file_to_rows(writer, tmp_path) -> None:
    _two_hundred(tmp_path / "a.jsonl")
    report = regenerate(tmp_path / "a.jsonl", tmp_path / "b.jsonl", writer)
    assert (report.lines, report.conversations, sum(report.dropped.values())) == (200, 197, 3)
    config = PrepareConfig(sequence_length=64, held_out=16)
    prepared = prepare(tmp_path / "b.jsonl", writer.tokenizer, tmp_path / "data", config)
    assert prepared.report.conversations == 197
    assert prepared.report.documents == 197 - 16
    assert (
        prepared.report.response_tokens + sum(len(prompt.reference) for prompt in prepared.held_out)
        == report.response_tokens
    )
    assert prepared.rows[0]["tokens"].shape == (64,)


def test_a_damaged_report_is_named(file, written, writer) -> None:
    output = written[0]
    path = output.with_name(f"{output.name}.report.json")
    whole = path.read_text()
    for text in ("{", "[]", '{"line": 3}', '{"lines": "a"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="b.jsonl.report.json: "):
            regenerate(file, output, writer)
    path.write_text(whole)
    assert regenerate(file, output, writer) == written[1]
