"""From a file of conversations to decoding with a drafter of one's own, by five commands."""

import json
from pathlib import Path

import pytest

import flexdraft_jax as fd

_CONFIGS = Path(__file__).parents[2] / "configs"
_BAD_LINES = {17: "{", 90: '{"messages": []}', 150: '{"prompt": 5, "response": "x"}'}


def conversations() -> list[str]:
    """Two hundred lines, three of them bad, in several shapes."""
    lines = []
    for number in range(1, 201):
        prompt, response = f"Count from {number}.", f"{number}, {number + 1}, {number + 2}."
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
        line = {"messages": messages} if number % 2 else {"prompt": prompt, "response": response}
        lines.append(_BAD_LINES.get(number, json.dumps(line)))
    return lines


def test_five_commands(run_script, models, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fd.save_target(models.target, tmp_path / "target")
    models.tokenizer.save_pretrained(tmp_path / "target")
    (tmp_path / "own.jsonl").write_text("\n".join(conversations()) + "\n")
    target = f"--target={tmp_path / 'target'}"
    written, data, work_dir = (tmp_path / name for name in ("written.jsonl", "data", "run"))

    arguments = [f"--input={tmp_path / 'own.jsonl'}", f"--output={written}", "--max_new_tokens=24"]
    run_script("regenerate", target, *arguments)
    rejected = Path(f"{written}.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejected] == sorted(_BAD_LINES)
    assert len(written.read_text().splitlines()) == 197

    sizes = ["--sequence_length=128", "--held_out=8"]
    run_script("prepare_data", target, f"--input={written}", f"--output={data}", *sizes)
    capsys.readouterr()

    overrides = ["--set=train.steps=3", "--set=eval.max_new_tokens=8"]
    arguments = [f"--config={_CONFIGS / 'tiny_draft.py'}", f"--data={data}", *overrides]
    run_script("train_draft", target, *arguments, f"--work_dir={work_dir}")
    assert "tau_held_out" in capsys.readouterr().out
    assert (work_dir / "tau.png").stat().st_size > 1000

    output = tmp_path / "draft"
    arguments = [f"--work_dir={work_dir}", f"--data={data}", "--max_new_tokens=16"]
    run_script("export_draft", target, *arguments, f"--output={output}")
    assert "8 of 8" in capsys.readouterr().out

    draft = fd.load_draft(output, models.target)
    prompts = [[1, 2, 3], [4]]
    drafted = fd.generate(models.target, draft, prompts, 12, "sequential")
    assert drafted.tokens == fd.generate(models.target, None, prompts, 12, "ar").tokens
