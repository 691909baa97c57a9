"""The loop: resuming, damaged checkpoints, signals, and steps that go wrong."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.parallel.mesh import make_mesh
from flexdraft_jax.training import loop
from flexdraft_jax.training.checkpoints import load_best
from flexdraft_jax.training.checksums import set_damaged_aside
from flexdraft_jax.training.optimizer import TrainState
from flexdraft_jax.training.preemption import StopSignal, TrainingStopped
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.watch import Metrics, TrainingDiverged


@pytest.fixture(scope="module")
def straight(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Bits and metrics file of a run that was never interrupted."""
    work_dir = tmp_path_factory.mktemp("straight")
    return toy.digest(toy.run(work_dir)), (work_dir / "metrics.jsonl").read_text()


def _stop_at(toy: ModuleType, work_dir: Path, at: int, number: int = signal.SIGTERM) -> int:
    """Runs until a signal that comes before step `at`; the exit code."""
    with pytest.raises(TrainingStopped) as stopped:
        toy.run(work_dir, step=toy.signalling(toy.toy_step(make_mesh()), at, number))
    return stopped.value.exit_code


def _saved(work_dir: Path) -> list[int]:
    return sorted(int(path.stem) for path in (work_dir / "checkpoints").glob("*.sha256"))


@pytest.mark.parametrize("at", [1, 2, 6])
def test_stopped_at_any_step_and_resumed_equals_never_stopped(
    toy: ModuleType, straight: tuple[str, str], tmp_path: Path, at: int
) -> None:
    assert _stop_at(toy, tmp_path, at) == 128 + signal.SIGTERM
    # The step that runs when the signal comes is finished, and so is the next, which is saved.
    assert _saved(tmp_path)[-1] == at + 1
    assert toy.digest(toy.run(tmp_path)) == straight[0]
    assert (tmp_path / "metrics.jsonl").read_text() == straight[1]


def test_a_signal_in_the_last_step_does_not_spoil_a_finished_run(
    toy: ModuleType, straight: tuple[str, str], tmp_path: Path
) -> None:
    step = toy.signalling(toy.toy_step(make_mesh()), toy.STEPS, signal.SIGTERM)
    assert toy.digest(toy.run(tmp_path, step=step)) == straight[0]


def test_the_first_interrupt_is_noted_and_the_second_obeyed() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def _flip_a_byte(step: Path) -> None:
    files = [path for path in step.glob("params/**/*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _truncate(step: Path) -> None:
    path = step / "optimizer" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:-1])


def _remove_a_file(step: Path) -> None:
    (step / "data" / "metadata").unlink()


def _empty(step: Path) -> None:
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _kill_before_checksums(step: Path) -> None:
    step.with_name(f"{step.name}.sha256").unlink()


@pytest.fixture(scope="module")
def stopped(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 5, with step 4 beside it. Tests change copies of it."""
    work_dir = tmp_path_factory.mktemp("stopped")
    _stop_at(toy, work_dir, 4)
    assert _saved(work_dir) == [3, 4, 5]
    return work_dir


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip_a_byte, "changed since it was written: params/"),
        (_truncate, "changed since it was written: optimizer/manifest.ocdbt"),
        (_remove_a_file, "missing: data/metadata"),
        (_empty, "the directory is empty"),
        (_kill_before_checksums, "it has no checksums"),
    ],
)
def test_damage_is_found_and_set_aside(
    stopped: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    whole, checkpoints = stopped / "checkpoints", tmp_path / "checkpoints"
    shutil.copytree(whole, checkpoints)
    assert set_damaged_aside(checkpoints) == {}
    for number in range(2):
        damage(checkpoints / "5")
        faults = set_damaged_aside(checkpoints)
        assert list(faults) == [5] and said in faults[5]
        assert _saved(tmp_path) == [3, 4]
        assert (tmp_path / "damaged_checkpoints" / f"5.{number}").is_dir()
        # What was set aside does not stand in the way of the same step, saved again.
        shutil.copytree(whole / "5", checkpoints / "5")
        shutil.copy(whole / "5.sha256", checkpoints)


@pytest.mark.parametrize("damage", [_flip_a_byte, _empty])
def test_a_damaged_checkpoint_is_said_so_and_the_one_before_is_used(
    toy: ModuleType,
    straight: tuple[str, str],
    stopped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    work_dir = shutil.copytree(stopped, tmp_path / "run")
    damage(work_dir / "checkpoints" / "5")
    assert toy.digest(toy.run(work_dir)) == straight[0]
    printed = capsys.readouterr().out
    assert "the checkpoint of step 5 is damaged and set aside" in printed
    assert "resumed at step 4" in printed
    assert (work_dir / "metrics.jsonl").read_text() == straight[1]


def test_without_a_good_checkpoint_it_starts_again_and_says_so(
    toy: ModuleType,
    straight: tuple[str, str],
    stopped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work_dir = shutil.copytree(stopped, tmp_path / "run")
    for step in _saved(work_dir):
        _flip_a_byte(work_dir / "checkpoints" / str(step))
    with pytest.raises(ValueError, match="no good checkpoint; step 3: changed since .*; step 4"):
        load_best(work_dir / "checkpoints", toy.toy_state(make_mesh()).params)
    assert toy.digest(toy.run(work_dir)) == straight[0]
    assert "starting from the beginning" in capsys.readouterr().out


def test_a_bad_row_stops_the_run_by_name_and_leaves_the_last_good_checkpoint(
    toy: ModuleType, straight: tuple[str, str], tmp_path: Path
) -> None:
    good = toy.toy_step(make_mesh())
    seen: list[np.ndarray] = []

    def poisoned(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        seen.append(np.asarray(rows.tokens))
        state, metrics = good(state, rows)
        if len(seen) < 5:
            return state, metrics
        row_loss = metrics["row_loss"].at[np.array([2, 6])].set(jnp.nan)
        params = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
        return state.replace(params=params), {
            **metrics,
            "loss": jnp.mean(row_loss),
            "row_loss": row_loss,
        }

    with pytest.raises(TrainingDiverged) as error:
        toy.run(tmp_path, step=poisoned)
    message = str(error.value)
    assert message.startswith("loss is nan at step 5; rows without a finite loss, 2 of 8: row 2")
    assert f"row 6 (tokens {' '.join(map(str, seen[4][6]))} ...)" in message
    assert _saved(tmp_path)[-1] == 4
    assert toy.digest(toy.run(tmp_path)) == straight[0]


def test_a_gradient_that_is_no_number_stops_before_it_is_saved(
    toy: ModuleType, tmp_path: Path
) -> None:
    good = toy.toy_step(make_mesh())

    def poisoned(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        at = int(state.step) + 1
        state, metrics = good(state, rows)
        return state, {**metrics, "grad_norm": jnp.float32(jnp.inf if at == 3 else 1.0)}

    with pytest.raises(TrainingDiverged, match="grad_norm is inf at step 3; each of .* 8 rows has"):
        toy.run(tmp_path, step=poisoned)
    assert _saved(tmp_path)[-1] == 2


def test_weights_that_are_no_numbers_are_named_and_not_saved(
    toy: ModuleType, tmp_path: Path
) -> None:
    good = toy.toy_step(make_mesh())

    def poisoned(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        at = int(state.step) + 1
        state, metrics = good(state, rows)
        bad = state.params["head"].at[2, 3].set(jnp.nan if at == 3 else 0.0)
        return state.replace(params={**state.params, "head": bad}), metrics

    with pytest.raises(TrainingDiverged, match="after step 3 there is NaN or infinity in head;"):
        toy.run(tmp_path, step=poisoned)
    assert _saved(tmp_path)[-1] == 2


def test_a_step_that_moves_the_state_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    good = toy.toy_step(make_mesh())

    class Elsewhere:
        def is_equivalent_to(self, other: object, ndim: int) -> bool:
            return False

    class Moved:
        sharding, ndim = Elsewhere(), 2

    def moving(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        state, metrics = good(state, rows)
        return state.replace(params={**state.params, "head": Moved()}), metrics

    with pytest.raises(ValueError, match=r"moved state\.params\['head'\] .* give the step out_sh"):
        toy.run(tmp_path, step=moving)


def test_the_best_by_score_stays_beside_the_newest(toy: ModuleType, tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])
    taken: list[np.ndarray] = []

    def evaluate(params: dict[str, jax.Array]) -> dict[str, float]:
        taken.append(np.asarray(params["head"]))
        return {"tau_a": next(scores), "tau_b": 1.0}

    toy.run(tmp_path, evaluate=evaluate)
    assert _saved(tmp_path) == [3, 6, 7, 8]
    like = toy.toy_state(make_mesh()).params
    best = load_best(tmp_path / "checkpoints", like)
    assert best.step == 3
    np.testing.assert_array_equal(best.params["head"], taken[0])
    assert best.metrics == {"tau_a": 3.0, "tau_b": 1.0, "score": 2.0}
    assert best.provenance == {"target": "toy"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["tau_a"] for line in lines if "tau_a" in line] == [3.0, 1.0, 2.0]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), like)
    with pytest.raises(ValueError, match=r"params/head is float32\[8, 16\] there and bfloat16"):
        load_best(tmp_path / "checkpoints", half)


def test_mean_tau_is_over_domains_alone() -> None:
    assert loop.mean_tau({"tau_a": 2.0, "accuracy_a": 9.0, "tau_b": 4.0}) == 3.0
