"""What checkpoints hold, and what they refuse."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.models.draft import draft_shapes
from flexdraft_jax.models.target import target_shapes
from flexdraft_jax.training.checkpoints import TrainCheckpoints, load_best, prepare_work_dir
from flexdraft_jax.training.checksums import fault
from flexdraft_jax.training.config import (
    DraftStepConfig,
    OptimizerConfig,
    TargetModelConfig,
    TrainDraftConfig,
)
from flexdraft_jax.training.optimizer import TrainState, make_optimizer


class _Batches:
    """A place in data."""

    def __init__(self, place: int):
        self.place = place

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.place}

    def set_state(self, state: dict[str, int]) -> None:
        self.place = state["next_index"]


_TARGET = TargetModelConfig(num_layers=4, hidden_size=64, intermediate_size=256).build(4096, (0,))
_DRAFT = DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=4)


def _noise(shapes: Any) -> Any:
    """Random everywhere, so that nothing can be stored in less than its size."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def _state(optimizer: Literal["adamw", "muon"], draft_config: DraftConfig = _DRAFT) -> TrainState:
    shapes = draft_shapes(_TARGET, draft_config)
    config = OptimizerConfig(steps=9, batch_size=1, learning_rate=1.0, optimizer=optimizer)
    opt_state = jax.eval_shape(make_optimizer(config).init, shapes)
    return TrainState(jnp.int32(3), _noise(shapes), _noise(opt_state))


@pytest.fixture(scope="module")
def state() -> TrainState:
    return _state("adamw")


@pytest.fixture(scope="module")
def saved(state: TrainState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the state at step 3."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = TrainCheckpoints(directory, 1, {"target": "abc"})
    checkpoints.save(3, state, _Batches(17))
    checkpoints.close()
    return directory


def _size(tree: Any) -> int:
    return sum(4 * leaf.size for leaf in jax.tree.leaves(tree))


def test_it_holds_the_draft_and_its_optimizer_and_nothing_of_the_target(
    state: TrainState, saved: Path
) -> None:
    written = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    # Parameters and two means; random numbers compress by a tenth.
    assert 2.6 * _size(state.params) < written < 3 * _size(state.params) + 100_000
    assert _size(target_shapes(_TARGET)) > 2_000_000  # Were it there, it would be seen.
    record = json.loads((saved / "3" / "record" / "metadata").read_text())
    parameters = len(jax.tree.leaves(state.params))
    groups = [name.split("/")[0] for name in record["arrays"]]
    assert groups.count("params") == parameters
    assert groups.count("step") == 1
    assert groups.count("opt_state") == 2 * parameters + 2  # Two step counters.


def test_everything_comes_back_bit_for_bit(state: TrainState, saved: Path) -> None:
    checkpoints, batches = TrainCheckpoints(saved, 1, {}), _Batches(0)
    restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state), batches)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert batches.place == 17


def test_the_weights_can_be_read_alone(state: TrainState, saved: Path) -> None:
    best = load_best(saved, jax.tree.map(jnp.zeros_like, state.params))
    jax.tree.map(np.testing.assert_array_equal, best.params, state.params)
    assert (best.step, best.metrics, best.provenance) == (3, {}, {"target": "abc"})
    wider = dataclasses.replace(_DRAFT, calibration_rank=5)
    with pytest.raises(ValueError, match=r"hidden/bias is float32\[4\] there and float32\[5\] her"):
        load_best(saved, draft_shapes(_TARGET, wider))


def test_a_state_of_another_optimizer_is_refused(saved: Path) -> None:
    checkpoints = TrainCheckpoints(saved, 1, {})
    with pytest.raises(ValueError, match="holds other arrays: opt_state/.* and absent here"):
        checkpoints.restore(_state("muon"), _Batches(0))
    checkpoints.close()


def test_the_working_directory_says_what_a_run_was_made_from(tmp_path: Path) -> None:
    config = OptimizerConfig(steps=9, batch_size=1, learning_rate=1.0)
    provenance = prepare_work_dir(tmp_path, config, target="abc", data="def")
    assert provenance["target"] == "abc" and provenance["data"] == "def"
    assert provenance["config"]["steps"] == 9
    assert provenance["versions"]["jax"] == jax.__version__
    assert prepare_work_dir(tmp_path, config, target="abc", data="def") == provenance
    prepare_work_dir(tmp_path, config, target="abc", data="another")  # Nothing to spoil yet.
    prepare_work_dir(tmp_path, config, target="abc", data="def")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match="data: def there, other here"):
        prepare_work_dir(tmp_path, config, target="abc", data="other")


def test_how_a_step_is_computed_may_change_on_resume(tmp_path: Path) -> None:
    config = TrainDraftConfig(_DRAFT, OptimizerConfig(steps=9, batch_size=2, learning_rate=1.0))
    prepare_work_dir(tmp_path, config)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    smaller = DraftStepConfig(microbatches=2, chunk=4, remat=True)
    prepare_work_dir(tmp_path, dataclasses.replace(config, step=smaller))
    other = dataclasses.replace(config, step=DraftStepConfig(compute_dtype="bfloat16"))
    message = "configuration: step.compute_dtype: float32 there, bfloat16 here; choose"
    with pytest.raises(ValueError, match=message):
        prepare_work_dir(tmp_path, other)


def test_a_file_that_has_no_checksum_is_a_fault(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "checkpoints")
    sums = tmp_path / "checkpoints/3.sha256"
    first, *others = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(others))
    name = Path(first.split()[1]).name
    assert fault(sums.with_suffix("")) == f"without checksums: {name}"
    sums.write_text("".join([first, *others]))
    assert fault(sums.with_suffix("")) is None


def test_damaged_metrics_of_another_step_do_not_matter(state: TrainState, tmp_path: Path) -> None:
    checkpoints = TrainCheckpoints(tmp_path, 2, {})
    for step in (3, 4):
        checkpoints.save(step, state, _Batches(17), {"tau_a": 1.0}, score=1.0)
    checkpoints.close()
    (tmp_path / "4/metrics/metrics").write_text("{")
    best = load_best(tmp_path, state.params)
    assert best.step == 3 and "metrics" in best.damaged[4]
