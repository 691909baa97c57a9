"""The commands that make data, as a person runs them."""

import json

import pytest

import flexdraft_jax as fd
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.data.corpus import Domain
from flexdraft_jax.data.held_out import HeldOutPrompt, default_prompts, read_prompts
from flexdraft_jax.data.prepared import load_prepared
from flexdraft_jax.training.regenerate import RegenerateReport


def test_conversations_become_rows(run_script, tmp_path, capsys) -> None:
    target = tmp_path / "target"
    build_byte_tokenizer().save_pretrained(target)
    conversations, data = tmp_path / "runs" / "a.jsonl", tmp_path / "data"
    arguments = ["--count=7", "--seed=3", "--domains=word_problems"]
    run_script("make_conversations", *arguments, f"--output={conversations}")
    lines = [json.loads(line) for line in conversations.read_text().splitlines()]
    assert [line["domain"] for line in lines] == ["word_problems"] * 7
    arguments = [f"--input={conversations}", f"--output={data}", "--sequence_length=512"]
    run_script("prepare_data", f"--target={target}", *arguments, "--held_out=2")
    prepared = load_prepared(data)
    assert (prepared.report.documents, len(prepared.held_out)) == (5, 2)
    assert {prompt.domain for prompt in prepared.held_out} == {"word_problems"}
    shown = capsys.readouterr().out
    assert "encoding: 7/7" in shown and "packing: 5/5" in shown
    assert "response share" in shown
    # The embedded default has the same tokenizer.
    run_script("prepare_data", *arguments, "--held_out=2")


def test_held_out_prompts_are_written_for_other_programs(run_script, tmp_path) -> None:
    def shipped(domain: Domain, count: int) -> list[HeldOutPrompt]:
        return default_prompts(domain)[:count]  # Making them takes seconds.

    path = tmp_path / "held_out.jsonl"
    arguments = ["--held_out", "--count=4", f"--output={path}"]
    run_script("make_conversations", *arguments, held_out_prompts=shipped)
    assert [prompt.domain for prompt in read_prompts(path)] == (
        ["word_problems", "word_problems", "code", "code"]
    )


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("make_conversations", ["--domains=cod", "--output=x"], "domain must be one of"),
        ("make_conversations", ["--count=-1", "--output={tmp}/x"], "count must be >= 0"),
        ("prepare_data", ["--input={tmp}/no", "--output={tmp}/x"], "No such file"),
        ("prepare_data", ["--input=a", "--output=b", "--template_kwargs=[]"], "a JSON object"),
        ("prepare_data", ["--input=a", "--output=b", "--target={tmp}"], "has no tokenizer"),
    ],
)
def test_bad_input_ends_with_one_line(run_script, tmp_path, script, arguments, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run_script(script, *(argument.format(tmp=tmp_path) for argument in arguments))


def test_regenerate_takes_its_flags(run_script, models, tmp_path, capsys) -> None:
    fd.save_target(models.target, tmp_path)
    models.tokenizer.save_pretrained(tmp_path)
    calls = []

    def regenerate(path, output, writer):
        calls.append((path, output, writer))
        return RegenerateReport(lines=3, conversations=2, dropped={"not JSON": 1})

    arguments = ["--input=a", "--output=b", f"--target={tmp_path}", "--batch_size=3"]
    options = ["--max_new_tokens=9", '--template_kwargs={"a": 1}']
    run_script("regenerate", *arguments, *options, regenerate=regenerate)
    ((path, output, writer),) = calls
    assert (path, output) == ("a", "b")
    assert (writer.batch_size, writer.max_new_tokens, writer.draft) == (3, 9, None)
    assert (writer.template_kwargs, writer.schedule) == ({"a": 1}, "flex")
    assert "dropped, not JSON" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="batch_size=0"):
        run_script("regenerate", *arguments, "--batch_size=0", regenerate=regenerate)
