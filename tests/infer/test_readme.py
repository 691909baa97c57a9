"""What the README says can be done, can be done."""

import re
from pathlib import Path

import pytest

from flexdraft_jax import assets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip()
    for line in README.replace("\\\n", " ").splitlines()
    if line.strip().startswith("python ")
]


def test_first_example_runs(directory, monkeypatch, capsys) -> None:
    monkeypatch.setattr(assets, "default_directory", lambda: directory)
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.rstrip().endswith(("stop", "length"))


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_scripts_flags_and_configs_that_exist(command: str) -> None:
    script = ROOT / command.split()[1]
    source = script.read_text()
    for flag in re.findall(r"--(\w+)", command):
        assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', source), f"{script.name} has no --{flag}"
    for config in re.findall(r"configs/\w+\.py", command):
        assert (ROOT / config).is_file()


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        if target not in ("alone", "a"):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_layout_names_folders_that_exist() -> None:
    layout = README.split("## Layout")[1].split("## ")[0]
    inside = re.findall(r"^      (\w+(?:/|\.py))", layout, flags=re.MULTILINE)
    assert len(inside) >= 9
    for name in inside:
        assert (ROOT / "flexdraft_jax" / name).exists()
