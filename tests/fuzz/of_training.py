"""Runs that go on with what an earlier one left: checkpoints, rewritten conversations, exports."""

import dataclasses
import functools
import importlib
import json
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import tiny
import wild
from trial import Entry, Trial

from flexdraft_jax.data.fingerprints import settings_path
from flexdraft_jax.training.checkpoints import TrainCheckpoints, load_best
from flexdraft_jax.training.preemption import TrainingStopped
from flexdraft_jax.training.regenerate import begin, merge_parts, regenerate, write_part
from flexdraft_jax.training.rewriting import Writer

_STOPPED_AT = 6


@functools.cache
def _toy() -> ModuleType:
    """The tests' toy run."""
    sys.path.append(str(Path(__file__).parents[1] / "training"))
    return importlib.import_module("toy_run")


@functools.cache
def _run() -> tuple[Path, str, list[Any]]:
    """A run that was stopped, what it comes to if it goes on, and the weights on the way."""
    toy = _toy()
    home = Path(tempfile.mkdtemp(prefix="fuzzrun"))
    mesh = toy.make_mesh()

    class Stop(Exception):
        pass

    step = toy.toy_step(mesh)

    def stopping(state: Any, rows: Any) -> Any:
        if int(state.step) == _STOPPED_AT:
            raise Stop
        return step(state, rows)

    config = dataclasses.replace(toy.SAVE_ALWAYS, eval_every=2)
    try:
        toy.run(home, mesh=mesh, step=stopping, config=config)
    except (Stop, TrainingStopped):
        pass
    shapes = toy.toy_state(mesh).params
    weights = []
    for path in sorted((home / "checkpoints").iterdir()):
        if path.is_dir():
            alone = Path(tempfile.mkdtemp(prefix="fuzzstep"))
            wild.copy(path, alone / path.name)
            (alone / f"{path.name}.sha256").write_bytes(
                path.with_name(f"{path.name}.sha256").read_bytes()
            )
            weights.append(jax.tree.map(np.asarray, load_best(alone, shapes).params))
    with tempfile.TemporaryDirectory() as other:
        whole = toy.digest(toy.run(Path(other), config=config))
    return home, whole, weights


def _resume(rng: random.Random, folder: Path) -> Trial:
    toy = _toy()
    home, whole, weights = _run()
    wild.copy(home, folder / "run")
    what = wild.damage_folder(rng, folder / "run")
    if rng.random() < 0.3:
        what += ", " + wild.damage_folder(rng, folder / "run")
    exports = rng.random() < 0.3
    config = dataclasses.replace(toy.SAVE_ALWAYS, eval_every=2)

    def run() -> None:
        if exports:
            shapes = toy.toy_state(toy.make_mesh()).params
            found = jax.tree.map(np.asarray, load_best(folder / "run/checkpoints", shapes).params)
            same = [
                all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(one)))
                for one in weights
            ]
            assert any(same), "weights that nobody saved"
            return
        assert toy.digest(toy.run(folder / "run", config=config)) == whole, "another end"

    return Trial(run, (str(folder),), f"{what}, {'export' if exports else 'resume'}")


_LINES = "".join(
    json.dumps({"prompt": "x" * size, "response": "y"}) + "\n" for size in (1, 5, 9, 3, 2)
)


@functools.cache
def _rewritten() -> tuple[Path, str]:
    """A folder with an unfinished run of two processes, and what becomes of it."""
    home = Path(tempfile.mkdtemp(prefix="fuzzrewrite"))
    (home / "in.jsonl").write_text(_LINES)
    output = home / "out.jsonl"
    begin(home / "in.jsonl", output, _writer())
    for index in (0, 1):
        write_part(home / "in.jsonl", output, _writer(), index, 2)
    with tempfile.TemporaryDirectory() as other:
        wild.copy(home, Path(other))
        merge_parts(Path(other) / "in.jsonl", Path(other) / "out.jsonl")
        return home, (Path(other) / "out.jsonl").read_text()


@functools.cache
def _writer() -> Writer:
    models = tiny.models()
    return Writer(
        target=models.target,
        draft=None,
        tokenizer=models.tokenizer,
        max_new_tokens=4,
        batch_size=2,
        template_kwargs={},
        schedule="ar",
    )


def _regenerate(rng: random.Random, folder: Path) -> Trial:
    home, wanted = _rewritten()
    wild.copy(home, folder / "run")
    output = folder / "run/out.jsonl"
    done = rng.random() < 0.3
    if done:
        merge_parts(folder / "run/in.jsonl", output)
    names = ("out.jsonl.report.json",) if done else ("out.jsonl.part-00000-of-00002",)
    files = [settings_path(output), *(output.with_name(name) for name in names)]
    what = wild.damage_folder(rng, folder / "run", files)

    def run() -> None:
        report = regenerate(folder / "run/in.jsonl", output, _writer())
        assert output.read_text() == wanted, "other responses"
        assert report.lines == 5 and report.conversations == 5, "a line is lost"

    return Trial(run, ("out.jsonl",), what)


def _keeping(rng: random.Random, folder: Path) -> Trial:
    """A step folder that holds less or more than was saved is never the newest."""
    home, _, _ = _run()
    wild.copy(home / "checkpoints", folder / "checkpoints")
    path = rng.choice(sorted((folder / "checkpoints").glob("*.sha256")))
    lines = path.read_text().splitlines(keepends=True)
    kind = rng.randrange(4)
    if kind == 0:
        path.write_text("".join(rng.sample(lines, rng.randrange(len(lines)))))
    elif kind == 1:
        (path.with_suffix("") / "more").write_text("x")
    else:
        path.write_bytes(wild.damaged(rng, path.read_bytes()))

    def run() -> None:
        checkpoints = TrainCheckpoints(folder / "checkpoints", 3, {})
        try:
            good = int(path.stem) not in checkpoints.damaged
            whole = sorted(path.read_text().splitlines()) if path.exists() else []
            if good:
                assert whole == sorted(line.rstrip("\n") for line in lines), "taken for whole"
        finally:
            checkpoints.close()

    return Trial(run, (str(folder),), f"{path.name}: kind {kind}")


ENTRIES: list[Entry] = [
    Entry("a training run that goes on", _resume),
    Entry("checksums of a checkpoint", _keeping),
    Entry("a rewriting that goes on", _regenerate),
]
