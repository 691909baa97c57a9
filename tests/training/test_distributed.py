"""Several processes: what they tell each other, and runs on two of them, killed and resumed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flexdraft_jax.parallel.processes import from_main, initialize

_PROGRAM = Path(__file__).with_name("toy_run.py")
_ROOT = Path(__file__).parents[2]


def _start(work_dir: Path, *arguments: str, processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts the toy on `processes` of `devices` each."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def together(index: int) -> dict[str, str]:
        if processes == 1:
            return {}
        return {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }

    return [
        subprocess.Popen(
            [sys.executable, str(_PROGRAM), f"--work_dir={work_dir}", *arguments],
            env={
                **os.environ,
                **together(index),
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": (
                    f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
                ),
                "PYTHONPATH": str(_ROOT),
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def _finish(started: list[subprocess.Popen], exit_code: int = 0) -> list[str]:
    """What each process printed, once all have ended with `exit_code`."""
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [exit_code] * len(started), printed
    return printed


_MESH = ("--data=2", "--fsdp=2", "--tensor=2")


def _digest(printed: list[str]) -> str:
    (line,) = [line for line in printed[0].splitlines() if line.startswith("digest ")]
    return line


def _losses(work_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_share_rows_and_agree(tmp_path: Path) -> None:
    printed = _finish(_start(tmp_path, "--talk_only", processes=2, devices=2))
    for index, text in enumerate(printed):
        line = text[text.index("talked ") + len("talked ") :].splitlines()[0]
        spread, whole = json.loads(line)
        assert spread == {
            "share": [index, 2],
            "rows": [0, 1, 2, 3],
            "found": "there",
            "agreed": [15, 1],
            "nobody": [0, 0],
            "from_main": {"tau": 1 / 3, "other": 0},
        }
        # Where `tensor` spans both, each holds a part of every row.
        assert whole == {**spread, "share": [0, 1]}


@pytest.fixture(scope="module")
def two_by_four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on two processes of four devices, never interrupted, and its bits."""
    work_dir = tmp_path_factory.mktemp("two_by_four")
    return work_dir, _digest(_finish(_start(work_dir, *_MESH, processes=2, devices=4)))


@pytest.mark.slow
def test_one_by_eight_two_by_four_and_one_device_have_equal_losses(
    toy: ModuleType, two_by_four: tuple[Path, str], tmp_path: Path
) -> None:
    _finish(_start(tmp_path / "eight", *_MESH, processes=1, devices=8))
    toy.run(tmp_path / "one")
    expected = _losses(two_by_four[0])
    assert len(expected) == toy.STEPS
    for run in ("eight", "one"):
        np.testing.assert_allclose(_losses(tmp_path / run), expected, rtol=1e-5)


@pytest.mark.slow
def test_killed_hard_and_resumed_equals_never_killed(
    two_by_four: tuple[Path, str], tmp_path: Path
) -> None:
    killed = ("--signal=SIGKILL", "--signal_at=5", "--signal_process=1")
    first, second = _start(tmp_path, *_MESH, *killed, processes=2, devices=4)
    assert second.wait(timeout=300) == -signal.SIGKILL
    first.kill()
    first.communicate()
    printed = _finish(_start(tmp_path, *_MESH, processes=2, devices=4))
    assert "resumed at step" in printed[0] and "resumed at step" not in printed[1]
    assert _digest(printed) == two_by_four[1]
    straight = (two_by_four[0] / "metrics.jsonl").read_text()
    assert (tmp_path / "metrics.jsonl").read_text() == straight


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_another_mesh_goes_on(
    two_by_four: tuple[Path, str], tmp_path: Path
) -> None:
    stopped = ("--signal=SIGTERM", "--signal_at=3", "--signal_process=1")
    started = _start(tmp_path, *_MESH, *stopped, processes=2, devices=4)
    for text in _finish(started, exit_code=128 + signal.SIGTERM):
        assert "stopped by SIGTERM after step 4, which is saved" in text
    other = ("--data=4", "--fsdp=2")
    (printed,) = _finish(_start(tmp_path, *other, processes=1, devices=8))
    assert "resumed at step 4" in printed
    np.testing.assert_allclose(_losses(tmp_path), _losses(two_by_four[0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("localhost:1", "", ""), "JAX_COORDINATOR_ADDRESS=localhost:1: JAX_NUM_PROCESSES, JAX_PR"),
        (("", "", "1"), "JAX_PROCESS_ID=1: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES must be set"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES=two, .* must be whole numbers"),
        (("localhost:1", "2", "-1"), "JAX_PROCESS_ID=-1: .* must be whole numbers"),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID=2: the last must be in 0..1"),
        (("here", "2", "0"), "JAX_COORDINATOR_ADDRESS=here, .* must be host:port"),
    ],
)
def test_half_a_description_of_the_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, str, str], message: str
) -> None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        initialize()


def test_alone_there_is_nothing_to_join_and_nobody_to_ask() -> None:
    initialize()
    assert from_main({"tau": 1 / 3}) == {"tau": 1 / 3}
