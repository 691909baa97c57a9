"""What README.md and docs/ say can be done, can be done; tests/test_docs.py has the names."""

import re
from pathlib import Path

import pytest

import flexdraft_jax as fd
from flexdraft_jax import assets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_first_example_runs(directory, monkeypatch, capsys) -> None:
    monkeypatch.setattr(assets, "default_directory", lambda: directory)
    exec(compile(examples(README)[0], "README.md", "exec"), {})
    assert capsys.readouterr().out.rstrip().endswith(("stop", "length"))


@pytest.mark.slow
def test_examples_of_decoding_run(directory, models, monkeypatch, tmp_path, capsys) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "to").symlink_to(directory)
    monkeypatch.chdir(tmp_path)
    prompts = [[72, 105], [33]]
    space = {"fd": fd, "tokenizer": models.tokenizer, "prompts": prompts, "prompt": prompts[0]}
    exec(compile(examples(README)[1], "README.md", "exec"), space)
    assert space["target"].dtype == "bfloat16"
    space |= {"target": models.target, "draft": models.draft}
    for example in examples((ROOT / "docs" / "decode_files.md").read_text()):
        exec(compile(example, "decode_files.md", "exec"), space)
    assert len(space["out"].tokens[0]) == 64
    assert {line[:2] for line in capsys.readouterr().out.splitlines()} >= {"0 ", "1 "}


def test_layout_names_folders_that_exist() -> None:
    layout = README.split("## Layout")[1].split("## ")[0]
    inside = re.findall(r"^      (\w+(?:/|\.py))", layout, flags=re.MULTILINE)
    assert len(inside) >= 9
    for name in inside:
        assert (ROOT / "flexdraft_jax" / name).exists()
