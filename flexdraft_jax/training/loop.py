"""The training loop that both programs share: dispatch, watch, evaluate, save, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import grain
import jax
import numpy as np

from flexdraft_jax.training.checkpoints import MetricsFile, TrainCheckpoints
from flexdraft_jax.training.config import LoopConfig
from flexdraft_jax.training.optimizer import Params, TrainState
from flexdraft_jax.training.progress import Metric, Progress, format_metric
from flexdraft_jax.training.rows import Rows

Metrics = Mapping[str, jax.Array]
StepFn = Callable[[TrainState, Rows], tuple[TrainState, Metrics]]
EvaluateFn = Callable[[Params], Mapping[str, float]]


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; the newest checkpoint is older than the bad step."""


def fit(
    state: TrainState,
    step_fn: StepFn,
    batches: grain.DatasetIterator,
    *,
    total_steps: int,
    config: LoopConfig,
    work_dir: Path,
    evaluate: EvaluateFn,
) -> TrainState:
    """Runs `step_fn` until `total_steps`, resuming from the newest checkpoint of `work_dir`.

    Step N is dispatched before the metrics of step N-1 are read, so the host's work hides behind
    the device's. Interrupted at any point and started again, a run continues from the last
    checkpoint and ends with the same bits as one that was never interrupted.

    Args:
        state: the state to start from when there is no checkpoint.
        step_fn: jitted, donating its state; its metrics are scalars or short vectors and contain
            "loss".
        batches: dictionaries with the arrays of :class:`Rows`; rewound on resume.
        total_steps: steps after which the run is complete.
        config: when to log, evaluate and save.
        work_dir: see :mod:`flexdraft_jax.training.checkpoints`.
        evaluate: called with the parameters every `config.eval_every` steps and at the end.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
    """
    checkpoints = TrainCheckpoints(work_dir / "checkpoints", config.keep_checkpoints)
    try:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state, batches)
        first_step = int(state.step)
        metrics_file = MetricsFile(work_dir / "metrics.jsonl", first_step)
        with Progress(total_steps, first_step) as progress:
            if first_step:
                progress.note(f"resumed at step {first_step}")
            watch = _Watch(progress, metrics_file, config.log_every)
            saved_at = time.monotonic()
            for step in range(first_step + 1, total_steps + 1):
                rows = Rows(**next(batches))
                state, metrics = step_fn(state, rows)
                watch.dispatched(step, metrics, rows.tokens.size)
                last = step == total_steps
                if last or (config.eval_every and step % config.eval_every == 0):
                    watch.catch_up()
                    watch.evaluated(step, evaluate(state.params))
                if last or time.monotonic() - saved_at > config.checkpoint_seconds:
                    watch.catch_up()  # A diverged state must never become the newest checkpoint.
                    checkpoints.save(step, state, batches)
                    saved_at = time.monotonic()
        return state
    finally:
        checkpoints.close()


class _Watch:
    """Reads metrics one step late, shows and records them, and stops a diverged run."""

    def __init__(self, progress: Progress, file: MetricsFile, log_every: int):
        self._progress = progress
        self._file = file
        self._log_every = log_every
        self._pending: tuple[int, Metrics, int] | None = None

    def dispatched(self, step: int, metrics: Metrics, tokens: int) -> None:
        """Takes the (possibly unfinished) metrics of `step`, reads those of the step before."""
        self.catch_up()
        self._pending = (step, metrics, tokens)

    def catch_up(self) -> None:
        """Reads the metrics that are still pending; waits for the device if it must."""
        if self._pending is None:
            return
        step, metrics, tokens = self._pending
        self._pending = None
        values: dict[str, Metric] = {k: np.asarray(v).tolist() for k, v in metrics.items()}
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"loss is {loss} at step {step}; lower train.learning_rate or "
                "train.clip_norm, then start again: the newest checkpoint is from before this step"
            )
        self._progress.update(step, tokens, values)
        if step % self._log_every == 0:
            self._file.write(step, values)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Shows and records the result of an evaluation."""
        text = "  ".join(f"{name} {format_metric(value)}" for name, value in values.items())
        self._progress.note(f"evaluation at step {step}: {text}")
        self._file.write(step, values)
