"""Decoding on two processes of four devices each: every one gets the answers to its own prompts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import flexdraft_jax as fd

_ROOT = Path(__file__).parents[2]

# On a mesh of all eight devices; then what is wrong is told to both.
_GENERATE = """
import json, sys
import jax
import flexdraft_jax as fd

fd.initialize()
mesh = fd.parse_mesh("data=2,fsdp=2,tensor=2").build()
target = fd.load_target(sys.argv[1] + "/target", mesh=mesh)
draft = fd.load_draft(sys.argv[1] + "/draft", target)
own = json.loads(sys.argv[2])[jax.process_index()]
answers = fd.generate(target, draft, own, mesh=mesh, **json.loads(sys.argv[3]))
updates = list(fd.stream(target, draft, own, **json.loads(sys.argv[3]), steps_per_update=9))
assert updates[-1] == answers
errors = []
for refused in (
    lambda: fd.generate(target, draft, [[1], [9999]][jax.process_index() :][:1]),
    lambda: fd.DecodeEngine(target, draft),
):
    try:
        refused()
    except ValueError as error:
        errors.append(str(error))
print(json.dumps([answers.tokens, errors]))
"""


@pytest.mark.slow
def test_each_process_gets_its_own_answers(directory: Path, models) -> None:
    prompts = [[[72, 105], [5] * 30], [[1, 2, 3], [200, 7], [9] * 12]]
    settings = {"max_new_tokens": 20, "temperature": 0.7, "seed": 3}
    arguments = [str(directory), json.dumps(prompts), json.dumps(settings)]
    printed = _run_on_two("-c", _GENERATE, *arguments)
    alone = fd.generate(models.target, models.draft, sum(prompts, []), **settings).tokens
    for wanted, text in zip((alone[:2], alone[2:]), printed, strict=True):
        tokens, (refused, elsewhere) = json.loads(text.splitlines()[-1])
        assert tokens == wanted
        assert refused.startswith("process 1: prompts[0]")
        assert "lies on several processes" in elsewhere


@pytest.mark.slow
def test_a_file_is_answered_in_shares(directory: Path, run_script, tmp_path: Path) -> None:
    lines = [{"token_ids": [i + 1] * (i % 7 + 1), "id": i, "seed": i} for i in range(11)]
    text = "\n".join([*(json.dumps(line) for line in lines[:5]), "", "broken"])
    text += "".join(f"\n{json.dumps(line)}" for line in lines[5:])
    (tmp_path / "in.jsonl").write_text(text)
    sizes = ["--batch_size=4", "--max_new_tokens=8", "--temperature=0.7", "--max_length=64"]
    arguments = [f"--input={tmp_path / 'in.jsonl'}", *sizes]
    run_script("decode_file", *arguments, f"--output={tmp_path / 'one.jsonl'}")
    models = [f"--target={directory / 'target'}", f"--draft={directory / 'draft'}"]
    script = str(_ROOT / "infer/decode_file.py")
    output = f"--output={tmp_path / 'two.jsonl'}"
    for _ in range(2):  # The second time, everything is there.
        _run_on_two(script, *models, *arguments, output, "--mesh=data=2,tensor=2")
        assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    stats = (tmp_path / "two.jsonl.stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in stats] == [1, 2, 3, 4, 5, *range(7, 14)]


def _run_on_two(*arguments: str) -> list[str]:
    """What each of two processes prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    printed = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    return printed
