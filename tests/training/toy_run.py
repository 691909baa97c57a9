"""The real loop around a toy: a bigram model that compiles in no time, on any mesh.

Tests import it; run as a program, it is one process of a run of several.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flexdraft_jax.data.pipeline import row_loader
from flexdraft_jax.parallel.mesh import make_mesh, shardings
from flexdraft_jax.parallel.processes import from_main, initialize, is_main, main_first, to_host
from flexdraft_jax.training.config import LoopConfig, OptimizerConfig
from flexdraft_jax.training.distributed import Agreement, batch_share, global_rows, place_state
from flexdraft_jax.training.loop import fit, mean_tau
from flexdraft_jax.training.optimizer import TrainState, make_optimizer
from flexdraft_jax.training.preemption import TrainingStopped
from flexdraft_jax.training.rows import Rows
from flexdraft_jax.training.watch import Metrics

STEPS = 8
BATCH_SIZE = 8
SAVE_ALWAYS = LoopConfig(log_every=1, eval_every=3, checkpoint_seconds=0.0, keep_checkpoints=3)
_VOCAB, _WIDTH, _LENGTH = 16, 8, 12
_OPTIMIZER = make_optimizer(OptimizerConfig(steps=STEPS, batch_size=BATCH_SIZE, learning_rate=0.1))


class ToyRows:
    """Random rows by index."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: Any, /) -> dict[str, np.ndarray]:
        tokens = np.random.default_rng(int(index)).integers(0, _VOCAB, _LENGTH).astype(np.int32)
        places = np.arange(_LENGTH, dtype=np.int32)
        ones = np.ones(_LENGTH, np.int32)
        return {
            "tokens": tokens,
            "segment_ids": ones,
            "positions": places,
            "response_mask": places > 3,
        }


def toy_state(mesh: Mesh) -> TrainState:
    """The first state, the same on every mesh."""
    rng = np.random.default_rng(7)
    params = {
        "embedding": rng.normal(size=(_VOCAB, _WIDTH)).astype(np.float32),
        "head": rng.normal(size=(_WIDTH, _VOCAB)).astype(np.float32),
    }
    axes = {"embedding": ("vocab", "embed"), "head": ("embed", "vocab")}
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(jnp.zeros((), jnp.int32), params, _OPTIMIZER.init(params))
    return place_state(mesh, state, shardings(mesh, axes, params))


def _row_losses(params: Any, rows: Rows) -> jax.Array:
    hidden = params["embedding"][rows.tokens[:, :-1]]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        hidden @ params["head"], rows.tokens[:, 1:]
    )
    return jnp.mean(losses, axis=1)


@cache
def toy_step(mesh: Mesh) -> Callable[[TrainState, Rows], tuple[TrainState, Metrics]]:
    """The optimizer step, with metrics of every kind."""

    def step(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            losses = _row_losses(params, rows)
            return jnp.mean(losses), losses

        (loss, row_loss), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = _OPTIMIZER.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "slots": jnp.stack([jnp.exp(-loss), jnp.exp(-2 * loss)]),
            "expected_tau": 1 + jnp.exp(-loss),
            "row_loss": row_loss,
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, toy_state(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(places, None))


def evaluate(params: Any) -> dict[str, float]:
    """Something that all processes compute together from parameters spread over them."""
    return {"tau_toy": float(np.mean(np.abs(to_host(params["head"]))))}


def run(
    work_dir: Path,
    *,
    mesh: Mesh | None = None,
    step: Callable[[TrainState, Rows], tuple[TrainState, Metrics]] | None = None,
    config: LoopConfig = SAVE_ALWAYS,
    evaluate: Callable[[Any], Mapping[str, float]] = evaluate,
) -> TrainState:
    """Trains the toy in `work_dir`, or goes on with it."""
    mesh = mesh or make_mesh()
    work_dir.mkdir(parents=True, exist_ok=True)
    share = batch_share(mesh, BATCH_SIZE)
    return fit(
        toy_state(mesh),
        step or toy_step(mesh),
        row_loader(
            ToyRows(),
            batch_size=BATCH_SIZE // share.count,
            seed=0,
            process_index=share.index,
            process_count=share.count,
        ),
        mesh=mesh,
        batch_size=BATCH_SIZE,
        total_steps=STEPS,
        config=config,
        work_dir=work_dir,
        provenance={"target": "toy"},
        evaluate=evaluate,
        score=mean_tau,
        step_flops=1.0,
    )


def digest(state: TrainState) -> str:
    """A hash of every bit of a state; all processes have to call this."""
    whole = jax.tree.map(to_host, state)
    return hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(whole))).hexdigest()


def signalling(
    step: Callable[[TrainState, Rows], tuple[TrainState, Metrics]], at: int, number: int
) -> Callable[[TrainState, Rows], tuple[TrainState, Metrics]]:
    """The step, in a process that gets a signal just before it takes step `at`."""

    def signalled(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        if int(state.step) + 1 == at:
            os.kill(os.getpid(), number)
        return step(state, rows)

    return signalled


def talk(work_dir: Path, mesh: Mesh) -> dict[str, Any]:
    """What this process hears from the others, with a batch of as many rows as devices."""
    me, (index, count) = jax.process_index(), dataclasses.astuple(batch_share(mesh, mesh.size))
    with main_first("a file"):
        if is_main():
            time.sleep(0.2)
            (work_dir / "file").write_text("there")
        found = (work_dir / "file").read_text()
    own = np.arange(mesh.size).reshape(count, -1, 1)[index]
    rows = global_rows(mesh, dict.fromkeys(Rows.__dataclass_fields__, own), mesh.size)
    agreement = Agreement(mesh)
    return {
        "share": [index, count],
        "rows": to_host(rows.tokens)[:, 0].tolist(),
        "found": found,
        "agreed": np.asarray(agreement.ask(15 * me, me == 0)).tolist(),
        "nobody": np.asarray(agreement.ask(0, False)).tolist(),
        "from_main": from_main({"tau": 1 / 3 + me, "other": me}),
    }


def main() -> None:
    """One process of several."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work_dir", type=Path)
    for name in ("data", "fsdp", "tensor"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--talk_only", action="store_true")
    parser.add_argument("--signal", default="")
    parser.add_argument("--signal_at", type=int, default=0)
    parser.add_argument("--signal_process", type=int, default=0)
    args = parser.parse_args()
    initialize()
    if args.talk_only:
        meshes = [make_mesh(data=2, fsdp=2), make_mesh(tensor=4)]
        print("talked", json.dumps([talk(args.work_dir, mesh) for mesh in meshes]))
        return
    mesh = make_mesh(args.data, args.fsdp, args.tensor)
    step = toy_step(mesh)
    if args.signal and args.signal_process == jax.process_index():
        step = signalling(step, args.signal_at, signal.Signals[args.signal])
    try:
        state = run(args.work_dir, mesh=mesh, step=step)
    except TrainingStopped as stopped:
        print(stopped)
        raise SystemExit(stopped.exit_code) from None
    bits = digest(state)
    if is_main():
        print(f"digest {bits}")


if __name__ == "__main__":
    main()
