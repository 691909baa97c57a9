"""Training checkpoints: parameters, optimizer, step and position in the data, saved by orbax.

A run's working directory holds

    config.json         what it was started with; a resume must bring the same
    metrics.jsonl       one line per logged step
    checkpoints/STEP/   state and data position; written in the background, renamed when whole
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from flexdraft_jax.training.config_files import as_dict
from flexdraft_jax.training.optimizer import TrainState
from flexdraft_jax.training.progress import Metric

# Groups of a configuration that may change between an interruption and its resume: they decide
# when the loop reports and saves, not what it computes.
_FREE_GROUPS = ("loop",)


class TrainCheckpoints:
    """Saves and restores a :class:`TrainState` together with a Grain iterator."""

    def __init__(self, directory: Path, keep: int):
        """Opens `directory` (created if missing), keeping the newest `keep` checkpoints."""
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> None:
        """Starts writing a checkpoint; returns as soon as the state may be donated again."""
        # On CPU, host views of arrays alias device memory; the next step overwrites that in place
        # while the background thread still writes. A copy makes the donation safe.
        snapshot = jax.block_until_ready(jax.tree.map(lambda leaf: leaf.copy(), state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(snapshot),
                data=grain.checkpoint.CheckpointSave(batches),
            ),
        )

    def restore(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """Returns the newest saved state, shaped like `state`, and rewinds `batches` to it."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                data=grain.checkpoint.CheckpointRestore(batches),
            ),
        )
        return restored["state"]

    def close(self) -> None:
        """Waits for the checkpoint in flight and stops the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def prepare_work_dir(work_dir: Path, config: Any, **provenance: str) -> None:
    """Creates the working directory, or checks that it belongs to the same run.

    Args:
        work_dir: of the run.
        config: the run's configuration, a dataclass.
        provenance: what else must be the same on resume, such as the target's fingerprint.

    Raises:
        ValueError: the directory holds a run with another configuration.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    recorded = work_dir / "config.json"
    # A round trip through JSON turns tuples into lists, as in the recorded file.
    wanted = json.loads(json.dumps({**as_dict(config), **provenance}))
    if recorded.exists():
        found = json.loads(recorded.read_text())
        different = [
            key
            for key in sorted(found.keys() | wanted.keys())
            if key not in _FREE_GROUPS and found.get(key) != wanted.get(key)
        ]
        if different:
            raise ValueError(
                f"work_dir={str(work_dir)!r} holds a run with another configuration: "
                + "; ".join(f"{k}: {found.get(k)} there, {wanted.get(k)} here" for k in different)
                + "; choose another directory or the same configuration"
            )
    recorded.write_text(json.dumps(wanted, indent=2) + "\n")


class MetricsFile:
    """Appends metrics to `metrics.jsonl`; a resumed run first drops what it will write again."""

    def __init__(self, path: Path, first_step: int):
        """Opens `path`, keeping only lines of steps up to `first_step`."""
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= first_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._path = path

    def write(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Appends one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
