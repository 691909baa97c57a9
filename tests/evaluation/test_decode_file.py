"""Files of requests: answers in order, bad lines in place, and a run that goes on anywhere."""

import copy
import dataclasses
import io
import json
import os
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import flexdraft_jax as fd
from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.rounds import Answer
from flexdraft_jax.evaluation.decode_file import decode_file, stats_path
from flexdraft_jax.evaluation.file_stats import FileSummary, plot_summary, stats_record, summarise
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.request_lines import LineSettings, read_request
from flexdraft_jax.parallel.locks import locked

SETTINGS = LineSettings(max_new_tokens=12, seed=3)


def _line(**fields) -> str:
    return json.dumps(fields)


# What is wrong with each bad line, by its number.
ERRORS = {
    2: "not JSON",
    5: "needs exactly one of prompt, messages, token_ids; has none",
    6: "needs exactly one of prompt, messages, token_ids; has prompt, token_ids",
    7: "temperature=-1.0: must be 0 or more",
    8: 'max_new_tokens="9": must be an integer',
    9: "token_ids[1]=260: must be a token id between 0 and 259",
    10: "prompt=7: must be a string",
    11: "system message not first",
    12: "messages end with the assistant's",
    13: "prompt must not be empty",
    14: "not UTF-8",
    15: "together they must be at most max_length=128",
    16: 'token_ids="ab": must be a list of token ids, at least one',
    17: "temperature=[0.5]: must be a number",
    18: "not an object",
}
LINES = [
    _line(prompt="How many?", id="first"),
    "{",
    "",
    _line(messages=[{"role": "user", "content": "Hello"}], temperature=0.9),
    _line(id=[5]),
    _line(prompt="a", token_ids=[1]),
    _line(prompt="a", temperature=-1.0, id=None),
    _line(prompt="a", max_new_tokens="9"),
    _line(token_ids=[1, 260]),
    _line(prompt=7),
    _line(messages=[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]),
    _line(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    _line(prompt=""),
    '{"prompt": "\udcff"}',
    _line(prompt="a" * 120),
    _line(token_ids="ab"),
    _line(prompt="a", temperature=[0.5]),
    "[1]",
    _line(token_ids=[256, 72, 257], max_new_tokens=30, top_k=5, temperature=1.5, seed=9),
    _line(prompt="none", max_new_tokens=0),
    *(_line(prompt="x" * (7 * i % 40 + 1), temperature=i % 2 * 1.0, id=i) for i in range(20)),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("input") / "requests.jsonl"
    path.write_bytes("\n".join(LINES).encode(errors="surrogateescape") + b"\n")
    return path


@pytest.fixture(scope="module")
def engine(models) -> DecodeEngine:
    return DecodeEngine(
        models.target,
        models.draft,
        batch_size=4,
        schedule="sequential",  # Flex would choose by the kind of this machine.
        prompt_chunk=32,
        max_length=128,
    )


@pytest.fixture(scope="module")
def decode(models, engine):
    """decode(input, output) with the settings of this module."""

    def decode(
        path: Path, output: Path, settings: LineSettings = SETTINGS, models: Models = models
    ) -> FileSummary:
        return decode_file(path, output, models, engine, settings, Console(file=io.StringIO()))

    return decode


@pytest.fixture(scope="module")
def answered(decode, file, tmp_path_factory) -> tuple[Path, FileSummary]:
    output = tmp_path_factory.mktemp("output") / "answers.jsonl"
    return output, decode(file, output)


def _copied(output: Path, directory: Path) -> Path:
    """The answers, with what lies beside them."""
    for suffix in ("", ".stats.jsonl", ".settings.json"):
        shutil.copy(f"{output}{suffix}", directory)
    return directory / output.name


def _records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_an_answer_or_an_error_in_its_place(answered):
    records = _records(answered[0])
    assert [record["line"] for record in records] == [1, 2, *range(4, len(LINES) + 1)]
    for record in records:
        if record["line"] in ERRORS:
            assert ERRORS[record["line"]] in record["error"]
            assert record.keys() <= {"line", "id", "error"}
        else:
            assert record["finish_reason"] in ("stop", "length")
    by_line = {record["line"]: record for record in records}
    assert by_line[1]["id"] == "first" and by_line[5]["id"] == [5] and by_line[7]["id"] is None
    assert "id" not in by_line[4]
    assert by_line[20]["token_ids"] == [] and by_line[20]["text"] == ""
    assert len(by_line[19]["token_ids"]) == 30 or by_line[19]["finish_reason"] == "stop"


def test_answers_are_those_of_generate(answered, models):
    """The row id of a line is its number."""
    by_line = {record["line"]: record for record in _records(answered[0])}
    prompts = {
        number: encode_turn(models.tokenizer, json.loads(LINES[number - 1])["prompt"], None).tokens
        for number in range(21, len(LINES) + 1)
    }
    out = fd.generate(
        models.target,
        None,
        list(prompts.values()),
        12,
        "ar",
        stop_token_ids=models.target.eos_token_ids,
        temperature=[i % 2 * 1.0 for i in range(20)],
        seed=3,
        row_ids=list(prompts),
    )
    for number, tokens, reason in zip(prompts, out.tokens, out.finish_reasons, strict=True):
        assert by_line[number]["token_ids"] == tokens
        assert by_line[number]["finish_reason"] == reason
        assert by_line[number]["text"] == models.tokenizer.decode(tokens, skip_special_tokens=True)


def test_stats_say_what_happened(answered):
    output, summary = answered
    answers, stats = _records(output), _records(stats_path(output))
    assert [record["line"] for record in stats] == [record["line"] for record in answers]
    for answer, record in zip(answers, stats, strict=True):
        if "error" in answer:
            assert record == {"line": answer["line"], "finish_reason": "error"}
            continue
        assert record["new_tokens"] == len(answer["token_ids"])
        assert record["finish_reason"] == answer["finish_reason"]
        assert 0 <= record["first_token_seconds"] <= record["seconds"]
        steps, emitted = np.sum([[0, 0], *record["by_fill"].values()], axis=0)
        assert steps == record["steps"]
        assert emitted == steps + sum(record["accepted"])
        assert record["tau"] == (pytest.approx(emitted / steps, abs=1e-4) if steps else None)
        assert all(a <= v for a, v in zip(record["accepted"], record["verified"], strict=True))
    assert summary.endings["error"] == len(ERRORS)
    assert summary.num_lines == len(answers)
    assert summary.num_tokens == sum(len(answer.get("token_ids", ())) for answer in answers)
    assert max(summary.steps) == 4 and summary.tau > 1


def test_a_finished_file_is_left_alone(answered, decode, file):
    output, summary = answered
    before = output.read_bytes(), stats_path(output).read_bytes()
    assert decode(file, output) == summary
    assert (output.read_bytes(), stats_path(output).read_bytes()) == before


@pytest.mark.parametrize("seed", range(4))
def test_a_run_goes_on_from_wherever_it_was_cut(answered, decode, file, tmp_path, seed):
    """Each of the two files may end at any byte, as they are written one after the other."""
    output = tmp_path / "answers.jsonl"
    rng = random.Random(seed)
    for suffix in ("", ".stats.jsonl"):
        content = Path(f"{answered[0]}{suffix}").read_bytes()
        Path(f"{output}{suffix}").write_bytes(content[: rng.randrange(len(content))])
    shutil.copy(f"{answered[0]}.settings.json", f"{output}.settings.json")
    summary = decode(file, output)
    assert output.read_bytes() == answered[0].read_bytes()
    assert summary.endings == answered[1].endings
    assert [r["line"] for r in _records(stats_path(output))] == [
        r["line"] for r in _records(output)
    ]


def test_answers_stay_where_their_stats_are_gone(answered, decode, file, tmp_path):
    """None is decoded again, and what they say themselves is counted."""
    output = tmp_path / "answers.jsonl"
    kept = answered[0].read_bytes().replace(b'"text": "', b'"text": "kept ')
    output.write_bytes(kept)
    shutil.copy(f"{answered[0]}.settings.json", f"{output}.settings.json")
    summary = decode(file, output)
    assert output.read_bytes() == kept
    assert summary.endings == answered[1].endings
    assert summary.num_tokens == answered[1].num_tokens > 0


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("content", [b"mine\n", b"mine", b'{"line": 1}\n{"line": 2, "x": 3}\n'])
def test_another_file_in_the_place_of_stats_stays(answered, decode, file, tmp_path, begun, content):
    output = tmp_path / "answers.jsonl"
    stats_path(output).write_bytes(content)
    if begun:
        shutil.copy(answered[0], output)
        shutil.copy(f"{answered[0]}.settings.json", f"{output}.settings.json")
    message = "its line 1 is not what was written there" if begun else "another file of that name"
    with pytest.raises(ValueError, match=f"answers.jsonl.stats.jsonl: .*{message}"):
        decode(file, output)
    assert stats_path(output).read_bytes() == content
    assert output.exists() == begun
    if begun:
        assert output.read_bytes() == answered[0].read_bytes()


@pytest.mark.parametrize("suffix", ["", ".stats.jsonl"])
def test_more_lines_than_the_input_has_are_refused(answered, decode, file, tmp_path, suffix):
    output = _copied(answered[0], tmp_path)
    written = Path(f"{output}{suffix}")
    longer = written.read_bytes() + written.read_bytes()[:500]
    written.write_bytes(longer)
    count = len(LINES) - 1  # One is blank.
    found = longer.count(b"\n") + 1  # And a torn one.
    message = f"answers.jsonl{suffix}: has {found} lines: must be at most the {count} of the input"
    with pytest.raises(ValueError, match=message):
        decode(file, output)
    assert written.read_bytes() == longer


@pytest.mark.parametrize(
    ("suffix", "before", "after"),
    [
        ("", b'"finish_reason": "length"}', b'"finish_'),
        ("", b'"token_ids": [', b'"token_ids": 5, "x": ['),
        (".stats.jsonl", b'"new_tokens": ', b'"new_tokens": "'),
        (".stats.jsonl", b'"by_fill": {"', b'"by_fill": {"x'),
    ],
)
def test_a_damaged_line_is_named(answered, decode, file, tmp_path, suffix, before, after):
    output = _copied(answered[0], tmp_path)
    written = Path(f"{output}{suffix}")
    lines = written.read_bytes().splitlines(keepends=True)
    place, whole = next((i, x) for i, x in enumerate(lines) if i > 4 and before in x)
    lines[place] = lines[place].replace(before, after)
    assert lines[place] != whole
    written.write_bytes(b"".join(lines))
    message = f"answers.jsonl{suffix}: its line {place + 1} is damaged .*; restore the file, or cut"
    with pytest.raises(ValueError, match=message):
        decode(file, output)
    assert written.read_bytes() == b"".join(lines)
    written.write_bytes(b"".join(lines[:place]))  # As the message says.
    decode(file, output)
    assert output.read_bytes() == answered[0].read_bytes()


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 10**5])
def test_damaged_settings_are_named(answered, decode, file, tmp_path, content):
    output = _copied(answered[0], tmp_path)
    Path(f"{output}.settings.json").write_bytes(content)
    with pytest.raises(ValueError, match="answers.jsonl.settings.json: .*JSON.*; restore it, or"):
        decode(file, output)


def test_an_error_in_the_chat_template_is_its_lines_alone(models, decode, tmp_path):
    tokenizer = copy.deepcopy(models.tokenizer)
    tokenizer.chat_template = "{{ 1 // (messages[0].content | length - 1) }}" + (
        tokenizer.chat_template
    )
    path = tmp_path / "in.jsonl"
    lines = [_line(prompt=text, temperature=0.5) for text in ("abc", "a", "ab")]
    path.write_text("\n".join(lines) + "\n")
    decode(path, tmp_path / "out.jsonl", models=dataclasses.replace(models, tokenizer=tokenizer))
    errors = [record.get("error") for record in _records(tmp_path / "out.jsonl")]
    assert errors[0] is errors[2] is None
    assert "template fails on the messages: ZeroDivisionError" in errors[1]


def test_without_a_chat_template_nothing_is_begun(models, decode, tmp_path):
    tokenizer = copy.deepcopy(models.tokenizer)
    tokenizer.chat_template = None
    plain = dataclasses.replace(models, tokenizer=tokenizer)
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("{\n" + _line(prompt="a") + "\n")
    with pytest.raises(ValueError, match="line 2: the tokenizer of .* has no chat template.*--raw"):
        decode(path, output, models=plain)
    assert not output.exists()
    raw = dataclasses.replace(SETTINGS, raw=True)
    decode(path, output, raw, models=plain)
    path.write_text(_line(messages=[{"role": "user", "content": "a"}]) + "\n")
    with pytest.raises(ValueError, match="line 1: .* no chat template, which messages need"):
        decode(path, tmp_path / "third.jsonl", raw, models=plain)
    path.write_text(_line(token_ids=[1]) + "\n" + _line(prompt="a") + "\n")
    decode(path, tmp_path / "other.jsonl", models=plain)
    assert "no chat template" in _records(tmp_path / "other.jsonl")[1]["error"]


def test_fields_without_a_meaning_are_named(models, engine, tmp_path):
    path, written = tmp_path / "in.jsonl", io.StringIO()
    lines = [
        _line(prompt="a", max_tokens=9, id=1),
        _line(prompt="b", max_tokens=9, **{"\ud800": 0}),
    ]
    path.write_text("\n".join(lines))
    console = Console(file=written, width=200)
    decode_file(path, tmp_path / "out.jsonl", models, engine, SETTINGS, console)
    assert "mean nothing here: 'max_tokens' (2), '\\ud800' (1)" in written.getvalue()


def test_settings_need_not_be_plain_to_go_on(decode, tmp_path):
    """Nor the numbers."""
    settings = dataclasses.replace(
        SETTINGS,
        template_kwargs={"x": float("nan"), "y": (1, 2)},
        temperature=np.float32(0.5),
        top_k=jax.numpy.array(5),
    )
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(_line(prompt="a") + "\n")
    assert decode(path, output, settings) == decode(path, output, settings)
    with pytest.raises(ValueError, match="template_kwargs was .*nan.*, is .*0.5"):
        decode(path, output, dataclasses.replace(settings, template_kwargs={"x": 0.5}))


def test_a_default_that_leaves_no_room_for_a_prompt_is_named(decode, file, tmp_path):
    settings = dataclasses.replace(SETTINGS, max_new_tokens=128)
    with pytest.raises(ValueError, match="^max_new_tokens=128: must be under max_length=128"):
        decode(file, tmp_path / "new.jsonl", settings)


def test_long_errors_keep_their_end(decode, tmp_path):
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(f'{{"prompt": "a", "temperature": {10**400}}}\n')
    decode(path, output)
    (record,) = _records(output)
    assert record["error"].startswith("temperature=1000") and len(record["error"]) <= 300
    assert record["error"].endswith("must be 0 or more, and at most 3.403e+38")


def test_one_run_at_a_time_writes_a_file(answered, decode, file):
    with locked(answered[0], "the other"):
        with pytest.raises(ValueError, match="answers.jsonl': another run is writing there"):
            decode(file, answered[0])
    assert decode(file, answered[0]) == answered[1]


def test_what_can_be_read_only_once_is_refused(decode, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(
            ValueError, match="must be a regular file, as it is read more than once"
        ):
            decode(path, tmp_path / "new.jsonl")
    assert [found.name for found in tmp_path.iterdir()] == ["pipe"]


def test_a_run_may_go_on_without_a_draft(answered, models, file, tmp_path):
    """Nor do batch size and threshold matter."""
    output = tmp_path / "answers.jsonl"
    output.write_bytes(answered[0].read_bytes()[:3000])
    for suffix in (".stats.jsonl", ".settings.json"):
        shutil.copy(f"{answered[0]}{suffix}", f"{output}{suffix}")
    engine = DecodeEngine(models.target, None, batch_size=1, prompt_chunk=32, max_length=128)
    settings = dataclasses.replace(SETTINGS, confidence_threshold=0.9)
    decode_file(file, output, models, engine, settings, Console(file=io.StringIO()))
    assert output.read_bytes() == answered[0].read_bytes()


def test_an_answer_that_breaks_off_is_an_error(
    answered, models, engine, file, tmp_path, monkeypatch
):
    run = DecodeEngine.run

    def breaks_off(self, requests):
        for answer in run(self, requests):
            if answer.index in (0, 7):
                tokens = answer.tokens[: answer.index]
                answer = dataclasses.replace(answer, tokens=tokens, finish_reason="error")
            yield answer

    monkeypatch.setattr(DecodeEngine, "run", breaks_off)
    output = tmp_path / "answers.jsonl"
    console = Console(file=io.StringIO())
    summary = decode_file(file, output, models, engine, SETTINGS, console)
    assert summary.endings["error"] == answered[1].endings["error"] + 2
    changed = {}
    for before, after in zip(_records(answered[0]), _records(output), strict=True):
        if before != after:
            changed[after.pop("line")] = after
    message = "the target's logits are NaN from token {} on; its activations overflow"
    assert changed == {
        1: {"id": "first", "error": message.format(0)},
        24: {"id": 3, "error": message.format(7)},
    }


def test_an_interrupted_run_writes_whole_lines_in_order(
    answered, models, engine, file, tmp_path, monkeypatch
):
    run = DecodeEngine.run

    def stops(self, requests):
        for count, answer in enumerate(run(self, requests)):
            if count == 9:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(DecodeEngine, "run", stops)
    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        decode_file(file, output, models, engine, SETTINGS, Console(file=io.StringIO()))
    assert answered[0].read_bytes().startswith(output.read_bytes())
    assert output.read_bytes().count(b"\n") >= 6


def test_other_settings_and_other_files_are_refused(answered, models, decode, file, tmp_path):
    with pytest.raises(ValueError, match="seed was 3, is 4"):
        decode(file, answered[0], dataclasses.replace(SETTINGS, seed=4))
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(ValueError, match="something else: the input has other content; choose"):
        decode(other, answered[0])
    other.unlink()
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), models.target.params)
    target = dataclasses.replace(models.target, params=half)
    others = dataclasses.replace(models, target=target, draft=None)
    engine = DecodeEngine(target, None, max_length=128)
    with pytest.raises(ValueError, match="dtype was float32, is bfloat16"):
        decode_file(file, answered[0], others, engine, SETTINGS, Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="there is another file of that name"):
        decode(file, file)
    with pytest.raises(ValueError, match="top_p=0.0"):
        decode(file, tmp_path / "new.jsonl", dataclasses.replace(SETTINGS, top_p=0.0))
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "missing.jsonl", tmp_path / "new.jsonl")


def test_ids_that_cannot_be_written_are_errors(decode, tmp_path):
    ids = [*("[" * depth + "]" * depth for depth in range(940, 1000, 7)), "NaN"]
    lines = [f'{{"id": {id}, "prompt": "a", "top_p": {10**400}}}' for id in (*ids, "5")]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    decode(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    records = _records(tmp_path / "out.jsonl")
    assert ["id" in record for record in records] == [False] * len(ids) + [True]
    assert all("nested" in record["error"] for record in records[: len(ids) - 1])
    assert "standard JSON" in records[-2]["error"] and "top_p" in records[-1]["error"]


def test_raw_prompts_have_no_template(models):
    raw = dataclasses.replace(SETTINGS, raw=True)
    assert read_request({"prompt": "hi"}, 1, models, raw).prompt == [104, 105]
    whole = read_request({"prompt": "hi"}, 1, models, SETTINGS).prompt
    assert whole == encode_turn(models.tokenizer, "hi", None).tokens


def test_progress_in_a_log_file(models, engine, file, tmp_path, monkeypatch):
    monkeypatch.setattr("flexdraft_jax.evaluation.file_progress._PLAIN_SECONDS", 0.0)
    written = io.StringIO()
    decode_file(file, tmp_path / "out.jsonl", models, engine, SETTINGS, Console(file=written))
    lines = written.getvalue().splitlines()
    assert f"{len(LINES) - 1} of {len(LINES) - 1} lines" in lines[-1]
    assert "tokens/s  tau" in lines[-1] and "0 min left" in lines[-1]


def test_records_count_drafts_by_position_and_rows():
    answer = Answer(0, [5] * 9, [3, 1, 4], [3, 2, 3], [2, 2, 1], "stop", 0.1, 0.5)
    record = stats_record(7, 4, answer)
    assert record["verified"] == [3, 3, 2] and record["accepted"] == [2, 2, 1]
    assert record["by_fill"] == {"1": [1, 4], "2": [2, 4]}
    assert (record["tau"], record["steps"]) == (2.6667, 3)
    summary = FileSummary()
    for one in (record, record, {"line": 8, "finish_reason": "error"}):
        summary.add(one)
    assert summary.tau == pytest.approx(8 / 3)
    assert summary.steps == {1: 2, 2: 4} and summary.emitted == {1: 8, 2: 8}
    assert summary.endings == {"stop": 2, "error": 1}


def test_a_plot_is_drawn(answered, tmp_path):
    plot_summary(summarise(stats_path(answered[0])), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    plot_summary(FileSummary(), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"token_ids": [256, null]', "token_ids[1]=null: must be an integer"),
        ('"token_ids": [true]', "token_ids[0]=true: must be an integer"),
        ('"token_ids": []', "token_ids=[]: must be a list of token ids, at least one"),
        ('"prompt": null', "prompt=null: must be a string"),
        ('"prompt": "a", "top_p": null', "top_p=null: must be a number"),
        ('"prompt": "a", "seed": 1.0', "seed=1.0: must be an integer"),
        ('"messages": [{"role": null, "content": ""}]', "messages[0] has null, must be one of"),
    ],
)
def test_errors_speak_of_the_lines_fields_as_json(decode, tmp_path, fields, message):
    (tmp_path / "in.jsonl").write_text(f"{{{fields}}}\n")
    decode(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (record,) = _records(tmp_path / "out.jsonl")
    assert message in record["error"]


def test_settings_are_recorded_by_the_run_that_writes(decode, tmp_path):
    """Of two first runs, the one without the lock must leave nothing behind."""
    path, output = tmp_path / "in.jsonl", tmp_path / "new/out.jsonl"
    path.write_text(_line(prompt="a") + "\n")
    with locked(output, "the other"):
        with pytest.raises(ValueError, match="another run is writing there"):
            decode(path, output, dataclasses.replace(SETTINGS, seed=4))
    assert [found.name for found in output.parent.iterdir()] == ["out.jsonl"]
    decode(path, output)
