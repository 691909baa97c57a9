"""The scripts on two processes of four devices each; the trainer with a mesh of all three axes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import flexdraft_jax as fd

_ROOT = Path(__file__).parents[2]
_MESH = ("--set=mesh.fsdp=2", "--set=mesh.tensor=2")


@pytest.mark.slow
def test_losses_and_tau_equal_those_of_one_device(run_script, models, tmp_path: Path) -> None:
    fd.save_target(models.target, tmp_path / "target")
    models.tokenizer.save_pretrained(tmp_path / "target")
    lines, target = tmp_path / "lines.jsonl", f"--target={tmp_path / 'target'}"
    data = f"--data={tmp_path / 'data'}"
    run_script("make_conversations", "--domains=word_problems", "--count=64", f"--output={lines}")
    sizes = ["--sequence_length=256", "--held_out=4", f"--output={tmp_path / 'data'}"]
    run_script("prepare_data", target, f"--input={lines}", *sizes)
    config = [f"--config={_ROOT / 'configs/tiny_draft.py'}", "--set=train.steps=4"]
    parts = ["--set=train.batch_size=8", "--set=step.chunk=4"]
    arguments = [*config, target, data, *parts]
    run_script("train_draft", *arguments, f"--work_dir={tmp_path / 'one'}")

    _run_on_two("train_draft", *arguments, *_MESH, f"--work_dir={tmp_path / 'two'}")

    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 5  # Four steps and an evaluation.
    for single, spread in zip(one, two, strict=True):
        for name, value in single.items():
            assert spread[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_data_is_written_together_as_by_one(run_script, models, tmp_path: Path) -> None:
    fd.save_target(models.target, tmp_path / "target")
    models.tokenizer.save_pretrained(tmp_path / "target")
    target = f"--target={tmp_path / 'target'}"
    lines = tmp_path / "lines.jsonl"
    run_script("make_conversations", "--domains=word_problems", "--count=12", f"--output={lines}")
    with lines.open("a") as file:
        file.write("no JSON\n")
    for name, run in (("one", run_script), ("two", _run_on_two)):
        written, data = tmp_path / f"{name}.jsonl", tmp_path / name
        sizes = ["--max_new_tokens=12", "--batch_size=4"]
        run("regenerate", target, f"--input={lines}", f"--output={written}", *sizes)
        sizes = ["--sequence_length=256", "--held_out=2"]
        run("prepare_data", target, f"--input={written}", f"--output={data}", *sizes)
    for suffix in ("", ".report.json", ".rejected.jsonl"):
        one, two = (tmp_path / f"{name}.jsonl{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    one, two = ((tmp_path / name / "report.json").read_bytes() for name in ("one", "two"))
    assert one == two


def _run_on_two(script: str, *arguments: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, str(_ROOT / f"train/{script}.py"), *arguments]
    processes = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(index)})
        for index in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
