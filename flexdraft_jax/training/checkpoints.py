"""Training checkpoints: parameters, optimizer, step and position in the data, saved by orbax.

A run's working directory holds

    lock                      locked while a run is at work
    config.json               what it was started with; a resume must bring the same
    metrics.jsonl             one line per logged step
    checkpoints/STEP/         params, optimizer, data position, metrics and record of one step
    checkpoints/STEP.sha256   see :mod:`flexdraft_jax.training.checksums`

To *resume* takes everything and goes on with the same run, bit for bit. A *warm start* is something
else: `init_from` begins a new run with exported weights, and no checkpoint. There is no random
state to save: anchors are drawn from the seed and the step, rows from the seed and the position in
the data.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from flexdraft_jax.checkpoints.paths import read_json, require_local
from flexdraft_jax.data.fingerprints import write_json
from flexdraft_jax.parallel.locks import locked_by_main
from flexdraft_jax.parallel.processes import is_main
from flexdraft_jax.training.checksums import fault, set_damaged_aside, steps, write_checksums
from flexdraft_jax.training.optimizer import Params, TrainState

# Groups of a configuration that may change between an interruption and its resume: they decide
# when the loop reports and saves and where arrays lie, not what is computed.
_FREE = ("loop.", "mesh.", "step.microbatches", "step.chunk", "step.remat")
_PACKAGES = ("flexdraft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


class Saved(NamedTuple):
    """The weights of one checkpoint and what is known about them.

    Attributes:
        step: that they were saved after.
        params: the trained parameters.
        metrics: of the evaluation at that step; empty if there was none.
        provenance: what the run was made from; see :func:`prepare_work_dir`.
        damaged: what is wrong with steps that could not be considered.
    """

    step: int
    params: Params
    metrics: dict[str, float]
    provenance: dict[str, Any]
    damaged: dict[int, str]


class TrainCheckpoints:
    """Saves and restores a :class:`TrainState` together with a Grain iterator.

    All processes make and call it alike. Kept are the newest steps and the best evaluated one.

    Attributes:
        damaged: what is wrong with each step that was found unfit and set aside at opening.
    """

    def __init__(self, directory: Path, keep: int, provenance: Mapping[str, Any]):
        """Opens `directory` (created if missing) after a check of every step in it.

        Args:
            directory: `checkpoints` of a working directory.
            keep: how many of the newest steps stay; the best one stays beside them.
            provenance: saved with every step.
        """
        self._directory = directory.resolve()
        # Before orbax looks: it takes even an empty folder for its latest step.
        self.damaged = set_damaged_aside(self._directory) if is_main() else {}
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._provenance = dict(provenance)
        best = checkpoint_managers.BestN(get_metric_fn=_score, n=1)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(keep), best]
                ),
                cleanup_tmp_directories=True,
            ),
        )
        self._sealing: threading.Thread | None = None
        self._unsealed: OSError | None = None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest good checkpoint, None when there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        batches: grain.DatasetIterator,
        metrics: Mapping[str, float] | None = None,
        score: float | None = None,
    ) -> None:
        """Starts writing a checkpoint; returns as soon as the state may be donated again.

        Args:
            step: that the state is of.
            state: spread over any mesh.
            batches: whose position is the same on every process.
            metrics: of an evaluation of this very state, if there was one.
            score: what "best" goes by, larger being better; given with `metrics`.
        """
        self._wait()
        # On CPU, host views of arrays alias device memory; the next step overwrites that in place
        # while the background thread still writes. A copy makes the donation safe.
        snapshot = jax.block_until_ready(jax.tree.map(lambda leaf: leaf.copy(), state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(snapshot.params),
                optimizer=ocp.args.StandardSave(_rest(snapshot)),
                # Not Grain's own handler: it writes a file per process and reads it back only on
                # as many processes, though the position is the same on all.
                data=ocp.args.JsonSave(batches.get_state()),
                record=ocp.args.JsonSave(
                    {"provenance": self._provenance, "arrays": _describe(state)}
                ),
            ),
            metrics={**(metrics or {}), **({} if score is None else {"score": score})},
        )
        if is_main():
            self._sealing = threading.Thread(target=self._seal, args=(step,))
            self._sealing.start()

    def restore(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """Resumes: returns the newest saved state and rewinds `batches` to it.

        Args:
            state: gives shapes, dtypes and places; the mesh need not be the one that saved.
            batches: an iterator over the same rows, on any number of processes.

        Raises:
            ValueError: the checkpoint holds arrays of other names, shapes or dtypes.
        """
        step = self._manager.latest_step()
        assert step is not None  # The caller has asked for `latest_step`.
        _check_arrays(self._manager, self._directory / str(step), step, _describe(state))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(state.params)),
                optimizer=ocp.args.StandardRestore(_abstract(_rest(state))),
                data=ocp.args.JsonRestore(),
            ),
        )
        batches.set_state(restored["data"])
        return TrainState(params=restored["params"], **restored["optimizer"])

    def close(self) -> None:
        """Waits for the checkpoint in flight and stops the background threads."""
        self._wait()
        self._manager.close()

    def _wait(self) -> None:
        self._manager.wait_until_finished()
        if self._sealing is not None:
            self._sealing.join()
        if self._unsealed is not None:
            raise self._unsealed

    def _seal(self, step: int) -> None:
        # An error in saving reaches the main thread by itself, when it waits or saves again.
        with suppress(Exception):
            self._manager.wait_until_finished()
            try:
                write_checksums(self._directory / str(step))
            except OSError as error:
                self._unsealed = OSError(f"checksums of step {step} were not written: {error}")


def load_best(directory: Path, params: Params) -> Saved:
    """The weights of the best evaluated checkpoint, or of the newest if none was evaluated.

    For exports. It changes nothing in `directory`.

    Args:
        directory: `checkpoints` of a working directory.
        params: gives shapes, dtypes and places.

    Raises:
        ValueError: no good checkpoint is there, or it holds arrays of other shapes or dtypes.
    """
    directory = directory.resolve()
    faults = {int(path.name): fault(path) for path in steps(directory)}
    good = [step for step, wrong in faults.items() if wrong is None]
    if not good:
        damage = "".join(f"; step {step}: {wrong}" for step, wrong in faults.items())
        raise ValueError(f"{str(directory)!r} holds no good checkpoint{damage}")
    options = ocp.CheckpointManagerOptions(best_fn=_score, read_only=True)
    with ExitStack() as stack:
        # Orbax reads the metrics of every step that it finds, and stops at a damaged one.
        shown = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for step in good:
            (shown / str(step)).symlink_to(directory / str(step))
        manager = stack.enter_context(ocp.CheckpointManager(shown, options=options))
        metrics = {step: manager.metrics(step) for step in good}
        step = max(good, key=lambda step: (_score(metrics[step]), step))
        wanted = _describe({"params": params})
        record = _check_arrays(manager, directory / str(step), step, wanted)
        restored = manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        )
        damaged = {step: wrong for step, wrong in faults.items() if wrong is not None}
        return Saved(step, restored["params"], metrics[step], record["provenance"], damaged)


def lock_work_dir(work_dir: Path) -> AbstractContextManager[None]:
    """Keeps other runs out of a working directory, which is made if need be.

    On several processes, all of them call it alike.

    Raises:
        ValueError: another run is at work there, or the path is a URL.
    """
    require_local(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    return locked_by_main(work_dir / "lock", f"work_dir={str(work_dir)!r}")


def prepare_work_dir(work_dir: Path, config: Any, **provenance: str) -> dict[str, Any]:
    """Creates the working directory, or checks that it belongs to the same run.

    Args:
        work_dir: of the run.
        config: the run's configuration, a dataclass.
        provenance: what else must be the same on resume, such as the target's fingerprint.

    Returns:
        The provenance of the run's checkpoints: that above, `config`, and `versions` of packages.

    Raises:
        ValueError: the directory holds a run with another configuration.
    """
    require_local(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    recorded = work_dir / "config.json"
    # A round trip through JSON turns tuples into lists, as in the recorded file.
    wanted = json.loads(json.dumps({**dataclasses.asdict(config), **provenance}))
    # Before the first checkpoint there is nothing that another configuration could spoil.
    if recorded.exists() and steps(work_dir / "checkpoints"):
        try:
            found = read_json(recorded)
        except ValueError as error:
            raise ValueError(f"{error}; restore it, or choose another work_dir") from error
        there, here = _leaves(found), _leaves(wanted)
        different = [
            name
            for name in sorted(there.keys() | here.keys())
            if not name.startswith(_FREE) and there.get(name) != here.get(name)
        ]
        if different:
            raise ValueError(
                f"work_dir={str(work_dir)!r} holds a run with another configuration: "
                + "; ".join(f"{n}: {there.get(n)} there, {here.get(n)} here" for n in different)
                + "; choose another directory or the same configuration"
            )
    if is_main():
        write_json(recorded, wanted)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {**provenance, "config": dataclasses.asdict(config), "versions": versions}


def _leaves(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of nested groups by its dotted name, as `--set` takes it."""
    leaves: dict[str, Any] = {}
    for name, value in group.items():
        inner = isinstance(value, Mapping)
        leaves |= _leaves(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return leaves


def _score(metrics: Mapping[str, float]) -> float:
    return metrics.get("score", -math.inf)


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the parameters, which stand alone so that an export can read just them."""
    return {"step": state.step, "opt_state": state.opt_state}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _describe(tree: Any) -> dict[str, str]:
    """Dtype and shape of every array by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _check_arrays(
    manager: ocp.CheckpointManager, where: Path, step: int, wanted: dict[str, str]
) -> dict[str, Any]:
    """The step's record, if what it holds is what is wanted; orbax would silently cast."""
    record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    groups = {path.split("/")[0] for path in wanted}
    found = {
        path: array for path, array in record["arrays"].items() if path.split("/")[0] in groups
    }
    different = [
        f"{path} is {found.get(path, 'missing')} there and {wanted.get(path, 'absent')} here"
        for path in sorted(found.keys() | wanted.keys())
        if found.get(path) != wanted.get(path)
    ]
    if different:
        raise ValueError(f"{str(where)!r} holds other arrays: {'; '.join(different)}")
    return record
