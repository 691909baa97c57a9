"""Reads metrics one step late, shows and records them, warns, and stops a diverged run."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flexdraft_jax.parallel.processes import to_host
from flexdraft_jax.training.flops import peak_flops
from flexdraft_jax.training.logbook import Logbook, disagreement, name_bad_rows
from flexdraft_jax.training.progress import Metric, Progress, format_metric
from flexdraft_jax.training.rows import Rows

Metrics = Mapping[str, jax.Array]

_ROW_LOSS = "row_loss"  # [B], read only when a step went wrong.
_MUST_BE_FINITE = ("loss", "grad_norm")
_RECENT_STEPS = 50


class TrainingDiverged(FloatingPointError):
    """A loss or weight is no longer a number; the newest checkpoint is older than the bad step."""


class Watch:
    """Stands between the loop, which runs ahead, and what a person gets to see."""

    def __init__(
        self,
        progress: Progress,
        logbook: Logbook | None,
        log_every: int,
        mesh: Mesh,
        step_flops: float,
    ):
        """Watches a run on `mesh`; see :func:`flexdraft_jax.training.loop.fit`."""
        self._progress = progress
        self._logbook = logbook
        self._log_every = log_every
        self._pending: tuple[int, Metrics, Rows] | None = None
        self._expected_tau: deque[float] = deque(maxlen=_RECENT_STEPS)
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        # Per step; None where the peak of these devices is not known.
        self._best_seconds = None if peak is None else step_flops / (peak * mesh.size)
        self._tokens = 0
        self._since: float | None = None  # None until the first step is compiled and done.
        self._steps = 0

    def dispatched(self, step: int, metrics: Metrics, rows: Rows) -> None:
        """Takes the (possibly unfinished) metrics of `step`, reads those of the step before."""
        self.catch_up()
        self._pending = (step, metrics, rows)

    def catch_up(self) -> None:
        """Reads the metrics that are still pending; waits for the device if it must."""
        if self._pending is None:
            return
        step, metrics, rows = self._pending
        self._pending = None
        values: dict[str, Metric] = {
            name: to_host(value).tolist() for name, value in metrics.items() if name != _ROW_LOSS
        }
        for name in _MUST_BE_FINITE:
            if name in metrics and not math.isfinite(float(metrics[name])):
                raise TrainingDiverged(_what_went_wrong(step, name, metrics, rows))
        if "expected_tau" in metrics:
            self._expected_tau.append(float(metrics["expected_tau"]))
        self._progress.update(step, rows.tokens.size, values)
        speed = self._speed(rows.tokens.size)
        if self._logbook is not None and step % self._log_every == 0:
            self._logbook.trained(step, values, speed)
            self._restart_clock()

    def evaluated(self, step: int, values: Mapping[str, float], *, expect: bool) -> None:
        """Shows and records the result of an evaluation.

        Args:
            step: that was evaluated.
            values: by name.
            expect: whether training is far enough for its promise to be compared with them.
        """
        text = "  ".join(f"{name} {format_metric(value)}" for name, value in values.items())
        self._progress.note(f"evaluation at step {step}: {text}")
        taus = [value for name, value in values.items() if name.startswith("tau_")]
        if expect and taus and self._expected_tau:
            warning = disagreement(float(np.mean(self._expected_tau)), float(np.mean(taus)))
            if warning is not None:
                self._progress.note(warning)
        if self._logbook is not None:
            self._logbook.evaluated(step, values)
        self._restart_clock()

    def _speed(self, tokens: int) -> dict[str, float]:
        """Tokens per second, and MFU where known, since the clock was started."""
        if self._since is None:
            self._restart_clock()
            return {}
        self._tokens += tokens
        self._steps += 1
        seconds = (time.monotonic() - self._since) / self._steps
        speed = {"tokens_per_second": self._tokens / self._steps / seconds}
        if self._best_seconds is not None:
            speed["mfu"] = self._best_seconds / seconds
        return speed

    def _restart_clock(self) -> None:
        self._since, self._tokens, self._steps = time.monotonic(), 0, 0


def require_finite_params(step: int, params: Any) -> None:
    """Raises TrainingDiverged, with each tensor that holds NaN or infinity; all processes ask."""
    finite = to_host(_finite(params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), is_finite in zip(leaves, finite, strict=True)
        if not is_finite
    ]
    if bad:
        raise TrainingDiverged(
            f"after step {step} there is NaN or infinity in {', '.join(bad)}; they are not saved. "
            "Lower train.learning_rate and start in another work_dir; the newest checkpoint here "
            "is from before this step"
        )


@jax.jit
def _finite(params: Any) -> jax.Array:
    """Of each leaf, in their order."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)])


def _what_went_wrong(step: int, name: str, metrics: Metrics, rows: Rows) -> str:
    row_loss = to_host(metrics[_ROW_LOSS]) if _ROW_LOSS in metrics else None
    return (
        f"{name} is {float(metrics[name])} at step {step}; "
        f"{name_bad_rows(to_host(rows.tokens), row_loss)}. Lower train.learning_rate or "
        "train.clip_norm, or leave those rows out, and start in another work_dir; the newest "
        "checkpoint here is from before this step"
    )
