"""The scripts that a person runs, on a tiny model."""

import contextlib
import importlib.util
import io
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import app, flags

import flexdraft_jax as fd
from flexdraft_jax.data.chat import build_byte_tokenizer, encode_turn
from flexdraft_jax.decoding.costs import find_profile, load_profile
from flexdraft_jax.evaluation.benchmark_report import BenchmarkReport, BenchmarkSettings
from flexdraft_jax.evaluation.decode_file import stats_path
from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.timing import Spread
from flexdraft_jax.parallel.devices import Device
from flexdraft_jax.planning import step_trace

ROOT = Path(__file__).parents[2]
BUDGET = "--max_new_tokens=24"


def expected_text(directory: Path, prompt: list[int]) -> str:
    target = fd.load_target(directory / "target")
    out = fd.generate(
        target, None, [prompt], max_new_tokens=24, schedule="ar", stop_token_ids=(258,)
    )
    text = build_byte_tokenizer().decode(out.tokens[0], skip_special_tokens=True)
    assert len(set(text)) > 3  # or the test could not tell much
    # Control characters are shown as symbols; bytes that make no character yet are not shown.
    symbols = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
    return text.translate(symbols).rstrip("�")


@pytest.mark.parametrize("raw", [False, True])
def test_generate_writes_the_text_and_nothing_else_to_stdout(
    raw: bool, run_script, directory, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    run_script("generate", BUDGET, f"--raw={raw}")
    tokenizer = build_byte_tokenizer()
    prompt = tokenizer.encode("hello") if raw else encode_turn(tokenizer, "hello", None).tokens
    captured = capsys.readouterr()
    assert captured.out.rstrip("\n").rstrip("�") == expected_text(directory, prompt)
    assert "tau" in captured.err and "tokens/s" in captured.err


def test_generate_compares_with_plain_decoding(run_script, capsys) -> None:
    random = ["--temperature=0.8", "--top_k=50", "--top_p=0.95", "--min_p=0.01", "--seed=3"]
    random.append("--mesh=data=1")
    run_script("generate", "--prompt=hello", BUDGET, "--compare", "--schedule=parallel", *random)
    report = capsys.readouterr().err
    assert "Equal to plain decoding, token for token: yes" in report
    assert "parallel" in report and "speed-up" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt="], "prompt must not be empty"),
        (["--prompt=a", "--compare", "--schedule=ar"], "--compare needs another schedule"),
        (
            ["--prompt=a", "--compare", "--temperature=1", "--sampling=rejection"],
            "--compare needs --sampling=coupled",
        ),
        (["--prompt=a", "--template_kwargs=x"], "template_kwargs='x': must be a JSON object"),
        (["--prompt=a", "--block_size=1"], "block_size=1: must be at least 2"),
        (["--prompt=a", "--temperature=-0.5"], "temperature=-0.5: must be 0 or more"),
        (["--prompt=a", "--top_k=-1"], "top_k=-1: must be 0 or more"),
        (["--prompt=a", "--top_p=0"], "top_p=0.0: must be above 0 and at most 1"),
        (["--prompt=a", "--min_p=2"], "min_p=2.0: must be between 0 and 1"),
        (["--prompt=a", "--seed=-1"], "seed=-1: must be 0 or more"),
        (["--prompt=a", "--max_new_tokens=5000"], "max_position_embeddings=1024"),
    ],
)
def test_generate_refuses_bad_input_with_one_line(run_script, arguments, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run_script("generate", *arguments)


def test_benchmark_writes_json_and_markdown(run_script, tmp_path, capsys) -> None:
    run_script(
        "benchmark",
        BUDGET,
        "--schedules=sequential",
        "--batch_sizes=2",
        "--block_sizes=4",
        "--num_prompts=2",
        "--repeats=1",
        f"--json={tmp_path / 'bench.json'}",
        f"--markdown={tmp_path / 'bench.md'}",
    )
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {row["method"] for row in report["decoding"]} >= {"ar", "sequential"}
    assert (tmp_path / "bench.md").read_text().count("| --- |") == 5
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speed", "files", "error"),
    [
        (100, ["after.json"], None),
        (50, ["after.json"], (SystemExit, r"^code, ar, .*: REGRESSION: slower \(-50 %\)$")),
        (100, ["nowhere.json"], (SystemExit, "error: .*No such file")),
        (100, [], (app.UsageError, "--compare needs two files")),
        (100, ["after.json", "--json=a"], (app.UsageError, "--json: --compare writes tables")),
    ],
)
def test_benchmark_compares_two_reports(run_script, tmp_path, capsys, speed, files, error) -> None:
    ratio = Spread(1, 1, 1)
    for name, median in (("before", 100), ("after", speed)):
        rows = [DecodeRow("code", 1, "ar", 1, Spread(median, median, median), ratio, 1.0, 2, 2)]
        report = BenchmarkReport("tiny", {}, BenchmarkSettings(), [], rows)
        (tmp_path / f"{name}.json").write_text(json.dumps(report.to_json()))
    paths = [file if file[0] == "-" else str(tmp_path / file) for file in files]
    table = tmp_path / "table.md"
    with pytest.raises(error[0], match=error[1]) if error else contextlib.nullcontext():
        run_script("benchmark", f"--compare={tmp_path}/before.json", *paths, f"--markdown={table}")
    assert ("Whole calls: tiny" in capsys.readouterr().out) == (files == ["after.json"])
    assert table.exists() == (files == ["after.json"])


def test_measured_steps_are_found_by_decoding(
    run_script, directory, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("FLEXDRAFT_JAX_PROFILES", str(tmp_path))
    options = ["--num_slots=32", "--num_steps=4", "--repeats=1"]
    run_script("measure_steps", "--batch_sizes=1", *options)
    assert "Written to" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    target = fd.load_target(directory / "target")
    draft = fd.load_draft(directory / "draft", target)
    found = find_profile(target.config, draft.config, target.dtype, None, 4, None)
    assert found == load_profile(path)
    assert [(c.block_size, c.batch_size, c.num_slots) for c in found.costs] == [(4, 1, 32)]


@pytest.mark.slow
def test_a_trace_shows_where_the_time_of_a_step_goes(
    run_script, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(step_trace, "measure_peaks", lambda dtype: Device(1e12, 1e11))
    options = ["--batch_sizes=2", "--num_slots=32", "--repeats=1"]
    run_script("measure_steps", f"--trace={tmp_path}", *options)
    assert "Longest operations: sequential, n = 4, batch 2" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 3
    tables = (tmp_path / "tables.md").read_text().split("**Parts of a step: ")[1:]
    for table, schedule in zip(tables, ("ar", "parallel", "sequential"), strict=True):
        assert table.startswith(f"{schedule}, ")
        lines = [line.strip("| ").split(" | ") for line in table.split("**\n")[1].splitlines()]
        ms = {line[0]: float(line[1]) for line in lines[3:] if len(line) == 7}
        step = ms.pop("step")
        assert sum(ms.values()) == pytest.approx(step, abs=0.001 * len(ms))
        drafting = schedule != "ar"
        names = {"shallow layers", "draft layers", "lm head", "acceptance", "cache write"}
        names |= {"mask tokens", "calibration", "drafts"} if drafting else set()
        assert all(ms.get(name, 0) > 0 for name in names), ms  # Or the scopes are lost.


@pytest.mark.parametrize("script", ["measure_steps", "benchmark"])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batch_sizes=x", "--batch_sizes=x: must be integers with commas between them"),
        ("--batch_sizes=1,0", "--batch_sizes=1,0: must be .* each at least 1"),
        ("--batch_sizes=", "--batch_sizes=: must be"),
        ("--block_sizes=1", "--block_sizes=1: must be .* each at least 2"),
    ],
)
def test_lists_of_sizes_are_checked(run_script, script, argument, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run_script(script, argument)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperatures=0,x"], "--temperatures=0,x: must be numbers with commas between them"),
        (["--temperatures=nan"], "--temperatures=nan: must be .* each at least 0"),
        (["--parts=steps", "--plot_tau=tau.png"], "--plot_tau: needs decoding among --parts"),
        (["--tasks=gsm8k", "--tasks_dir=nowhere"], "tasks_dir='nowhere': there is no such"),
    ],
)
def test_what_the_benchmark_is_asked_for_is_checked(run_script, arguments, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run_script("benchmark", *arguments)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("measure_steps", ["--num_steps=0"], "num_steps"),
        ("measure_steps", ["--random_target=1m"], "random_target, target"),
        ("measure_steps", ["--trace=a", "--output=b"], "trace, output"),
        ("measure_steps", ["--trace=a", "--mesh=tensor=1"], "trace, mesh"),
        ("benchmark", ["--random_target=1m"], "random_target, target"),
    ],
)
def test_flags_that_do_not_go_together_are_named(run_script, script, arguments, message) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        run_script(script, *arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (f"--trace={__file__}", "--trace=.*: must be a folder, and is a file"),
        ("--num_slots=256,7", r"num_slots=7: must be at least 2 \* block_size=8"),
    ],
)
def test_nothing_is_measured_where_not_all_can_be(
    run_script, capsys, argument: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_script("measure_steps", argument)
    assert "step costs" not in capsys.readouterr().out


def test_measured_steps_need_a_draft(run_script, directory) -> None:
    with pytest.raises(SystemExit, match="--target without --draft"):
        run_script("measure_steps", f"--target={directory / 'target'}", tiny=False)


def test_measure_tau_writes_a_report_per_domain(run_script, tmp_path, capsys) -> None:
    path = tmp_path / "tau.json"
    run_script("measure_tau", BUDGET, "--num_prompts=2", f"--json={path}")
    assert [report["domain"] for report in json.loads(path.read_text())] == [
        "word_problems",
        "code",
    ]
    assert "2 of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_measure_acceptance_writes_a_line_per_domain_and_temperature(
    run_script, tmp_path, capsys
) -> None:
    path, markdown = tmp_path / "acceptance.json", tmp_path / "acceptance.md"
    run_script(
        "measure_acceptance",
        BUDGET,
        "--num_prompts=2",
        "--temperature=0.5",
        f"--json={path}",
        f"--markdown={markdown}",
    )
    rows = json.loads(path.read_text())
    assert [(row["domain"], row["temperature"]) for row in rows] == [
        ("word_problems", 0.5),
        ("code", 0.5),
    ]
    assert markdown.read_text().count("| 0.5 |") == 2
    assert "rejection" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["measure_acceptance", "measure_tau"])
def test_more_prompts_than_there_are_is_an_error(run_script, script) -> None:
    with pytest.raises(SystemExit, match="num_prompts=1000: must be between 1 and"):
        run_script(script, "--num_prompts=1000")


def test_demo_ends_with_a_verdict(run_script, capsys) -> None:
    run_script("demo", BUDGET, "--num_prompts=2", "--num_timed=1", "--repeats=1")
    assert "Lossless: all 4 answers equal plain decoding" in capsys.readouterr().out


def _requests(path: Path, count: int) -> Path:
    """A file of requests of different lengths, a bad line among them."""
    lines = [
        json.dumps({"prompt": "x" * (i % 30 + 1), "max_new_tokens": 4 + 7 * i % 50, "id": i})
        for i in range(count)
    ]
    path.write_text("\n".join([*lines[:5], "{", *lines[5:]]) + "\n")
    return path


def test_decode_file_answers_lines_and_says_how_many(run_script, tmp_path, capsys) -> None:
    arguments = [
        f"--input={_requests(tmp_path / 'in.jsonl', 12)}",
        f"--output={tmp_path / 'out.jsonl'}",
        f"--plot={tmp_path / 'plot.png'}",
        "--batch_size=4",
        "--max_length=128",
        BUDGET,
    ]
    run_script("decode_file", *arguments)
    captured = capsys.readouterr()
    assert "compiling for 4 rows of 128 tokens" in captured.err
    assert "ended by error" in captured.out and "out.jsonl.stats.jsonl" in captured.out
    assert (tmp_path / "plot.png").exists()
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 13


@pytest.mark.parametrize(
    ("plot", "message"),
    [("", "is a directory"), ("in.jsonl", "of its own"), ("out.jsonl.stats.jsonl", "of its own")],
)
def test_a_plot_in_the_place_of_something_else_is_refused(
    run_script, tmp_path, plot, message
) -> None:
    paths = [f"--input={_requests(tmp_path / 'in.jsonl', 2)}", f"--output={tmp_path / 'out.jsonl'}"]
    with pytest.raises(SystemExit, match=message):
        run_script("decode_file", *paths, f"--plot={tmp_path / plot}")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_decode_file_loses_nothing_when_it_is_killed(directory, tmp_path) -> None:
    """Ten times, by the lines that are there and by the clock in turn."""
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    command = [sys.executable, str(ROOT / "infer" / "decode_file.py")]
    command += [f"--target={directory / 'target'}", f"--draft={directory / 'draft'}"]
    command += [f"--input={_requests(tmp_path / 'in.jsonl', 600)}", "--temperature=0.7"]

    def begin(output: Path) -> subprocess.Popen:
        return subprocess.Popen([*command, f"--output={output}"], stderr=subprocess.DEVNULL)

    def run_until(output: Path, num_lines: int, deadline: float = math.inf) -> float:
        """Kills it when so many lines are there, or so many seconds have gone by."""
        process, start = begin(output), time.monotonic()
        while time.monotonic() - start < deadline and _num_lines(output) < num_lines:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        return time.monotonic() - start

    rng, before = random.Random(0), 0
    seconds = run_until(killed, 1)
    for turn in range(9):
        more, share = (rng.randint(1, 40), math.inf) if turn % 2 else (60, rng.uniform(0.3, 1.2))
        run_until(killed, before + more, share * seconds)
        assert before <= _num_lines(killed) < 601
        before = _num_lines(killed)
    assert begin(killed).wait(timeout=300) == begin(whole).wait(timeout=300) == 0
    assert killed.read_bytes() == whole.read_bytes()
    stats = [json.loads(line) for line in stats_path(killed).read_text().splitlines()]
    assert [record["line"] for record in stats] == list(range(1, 602))


def test_a_script_runs_on_its_own(directory) -> None:
    """As a program: flags, output and exit status."""
    done = subprocess.run(
        [sys.executable, ROOT / "infer" / "generate.py", "--target", directory / "target"]
        + ["--schedule=ar", "--prompt=hello", BUDGET],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    prompt = encode_turn(build_byte_tokenizer(), "hello", None).tokens
    assert done.stdout.rstrip("\n").rstrip("�") == expected_text(directory, prompt)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("infer/*.py")) + sorted(ROOT.glob("train/*.py")), ids=lambda p: p.stem
)
def test_scripts_hide_no_module(path: Path) -> None:
    """A script's folder comes first on the path when it runs."""
    assert path.stem not in sys.stdlib_module_names
    assert importlib.util.find_spec(path.stem) is None
