"""The training loop that both programs share: dispatch, watch, evaluate, save, stop, resume.

Every process of a run goes through it alike and decides alike; process 0 alone prints and writes
the logbook.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from flexdraft_jax.parallel.processes import from_main, is_main
from flexdraft_jax.training.checkpoints import TrainCheckpoints
from flexdraft_jax.training.config import LoopConfig
from flexdraft_jax.training.distributed import Agreement, global_rows
from flexdraft_jax.training.logbook import Logbook
from flexdraft_jax.training.optimizer import Params, TrainState
from flexdraft_jax.training.preemption import StopSignal, TrainingStopped
from flexdraft_jax.training.progress import Progress
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.watch import Metrics, Watch, require_finite_params

StepFn = Callable[[TrainState, Rows], tuple[TrainState, Metrics]]
EvaluateFn = Callable[[Params], Mapping[str, float]]
ScoreFn = Callable[[Mapping[str, float]], float]
# Called with the step and the values of each evaluation.
OnEvaluation = Callable[[int, Mapping[str, float]], None]

# Share of a run before which expected and real tau are both near 1 and their ratio says nothing.
_WARM_UP = 0.1


def mean_tau(values: Mapping[str, float]) -> float:
    """The score of a drafter: tau, the mean over domains."""
    return float(np.mean([value for name, value in values.items() if name.startswith("tau_")]))


def fit(
    state: TrainState,
    step_fn: StepFn,
    batches: grain.DatasetIterator,
    *,
    mesh: Mesh,
    batch_size: int,
    total_steps: int,
    config: LoopConfig,
    work_dir: Path,
    provenance: Mapping[str, Any],
    evaluate: EvaluateFn,
    score: ScoreFn,
    step_flops: float,
    on_evaluation: OnEvaluation | None = None,
) -> TrainState:
    """Runs `step_fn` until `total_steps`, resuming from the newest good checkpoint of `work_dir`.

    Step N is dispatched before the metrics of step N-1 are read, so the host's work hides behind
    the device's. Interrupted at any point and started again, a run continues from the last
    checkpoint and ends with the same bits as one that was never interrupted; on another mesh, with
    the same rows in the same order and losses equal to rounding.

    Args:
        state: where to start when there is no checkpoint; its arrays lie on `mesh`.
        step_fn: jitted, donating its state and leaving it where it lies; its metrics contain "loss"
            and may contain vectors.
        batches: this process's share of the rows, as dictionaries with the arrays of
            :class:`Rows`; rewound on resume.
        mesh: that rows are spread over.
        batch_size: B, rows of a batch, all processes together.
        total_steps: steps after which the run is complete.
        config: when to log, evaluate and save.
        work_dir: see :mod:`flexdraft_jax.training.checkpoints`; the same for all processes.
        provenance: saved with every checkpoint.
        evaluate: called with the parameters every `config.eval_every` steps and at the end, on
            every process: parameters that are spread over hosts can be read only by a program that
            all of them run. The values of process 0 count.
        score: how good an evaluation is; the best checkpoint is kept.
        step_flops: of a step, for the MFU.
        on_evaluation: called on process 0 when an evaluation is recorded, to show it elsewhere.

    Raises:
        TrainingDiverged: the loss, the gradient or a weight became NaN or infinite.
        TrainingStopped: a signal ended the run early; the last step is saved.
        ValueError: the checkpoint does not fit `state`, or `step_fn` moved the state elsewhere.
    """
    with ExitStack() as stack:
        checkpoints = TrainCheckpoints(
            work_dir / "checkpoints", config.keep_checkpoints, provenance
        )
        stack.enter_context(closing(checkpoints))
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state, batches)
        first_step = int(state.step)
        console = stack.enter_context(_console())
        progress = stack.enter_context(Progress(total_steps, first_step, console))
        _say_where_it_starts(progress, checkpoints, first_step)
        logbook = stack.enter_context(closing(Logbook(work_dir, first_step))) if is_main() else None
        watch = Watch(progress, logbook, config.log_every, mesh, step_flops)
        signal = stack.enter_context(StopSignal())
        agreement = Agreement(mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        saved_at = time.monotonic()
        for step in range(first_step + 1, total_steps + 1):
            rows = global_rows(mesh, next(batches), batch_size)
            save_is_due = time.monotonic() - saved_at > config.checkpoint_seconds
            wishes = agreement.ask(signal.number, save_is_due)
            state, metrics = step_fn(state, rows)
            if step == first_step + 1:
                _check_places(places, state)
            watch.dispatched(step, metrics, rows)
            stop, save = np.asarray(wishes).tolist()
            last = step == total_steps
            values: Mapping[str, float] = {}
            evaluates = last or (config.eval_every and step % config.eval_every == 0)
            if evaluates or save or stop:
                watch.catch_up()  # A diverged state must never become the newest checkpoint.
                require_finite_params(step, state.params)
            if evaluates:
                values = from_main(evaluate(state.params))
                watch.evaluated(step, values, expect=step > total_steps * _WARM_UP)
                if on_evaluation is not None and is_main():
                    on_evaluation(step, values)
            if evaluates or save or stop:
                checkpoints.save(step, state, batches, values, score(values) if values else None)
                saved_at = time.monotonic()
            if stop and not last:
                raise TrainingStopped(stop, step)
        return state


@contextmanager
def _console() -> Iterator[Console]:
    if is_main():
        yield Console(highlight=False)
        return
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere)


def _say_where_it_starts(
    progress: Progress, checkpoints: TrainCheckpoints, first_step: int
) -> None:
    for step, wrong in checkpoints.damaged.items():
        progress.note(
            f"the checkpoint of step {step} is damaged and set aside in damaged_checkpoints/: "
            f"{wrong}"
        )
    if first_step:
        progress.note(f"resumed at step {first_step}")
    elif checkpoints.damaged:
        progress.note("no good checkpoint is left: starting from the beginning")


def _check_places(places: TrainState, state: TrainState) -> None:
    # A state that moves is compiled for twice, and may not fit where it went.
    for (path, place), array in zip(
        jax.tree_util.tree_leaves_with_path(places), jax.tree.leaves(state), strict=True
    ):
        if not array.sharding.is_equivalent_to(place, array.ndim):
            raise ValueError(
                f"step_fn moved state{jax.tree_util.keystr(path)} from {place} to "
                f"{array.sharding}: must leave it where it lies; give the step out_shardings"
            )
