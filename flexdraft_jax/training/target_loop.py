"""Trains a small target from text: next-token prediction on packed rows.

A row holds several documents one after another; `segment_ids` keeps them apart (0 is padding), so
a document never sees its neighbour and positions restart at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flexdraft_jax.checkpoints.hf import load_target, save_target
from flexdraft_jax.config import TargetConfig
from flexdraft_jax.data.builder import prepare_rows
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.data.corpus import corpus_source
from flexdraft_jax.data.pipeline import RowSource, row_loader
from flexdraft_jax.models.target import Target, TargetModel, init_target, target_shardings
from flexdraft_jax.parallel.mesh import make_mesh
from flexdraft_jax.training.checkpoints import lock_work_dir, prepare_work_dir
from flexdraft_jax.training.config import TrainTargetConfig
from flexdraft_jax.training.distributed import place_state
from flexdraft_jax.training.flops import target_step_flops
from flexdraft_jax.training.loop import EvaluateFn, StepFn, fit
from flexdraft_jax.training.optimizer import (
    Params,
    TrainState,
    apply_gradients,
    first_state,
    make_optimizer,
)
from flexdraft_jax.training.rows import Rows

_HELD_OUT = "held_out_"


def train_target(config: TrainTargetConfig, work_dir: str | Path) -> Target:
    """Trains a target and writes it, with its tokenizer, to `work_dir/export`.

    Started again with the same configuration and directory, it continues from the newest
    checkpoint.

    Args:
        config: what to train, on what, and how.
        work_dir: for prepared data, checkpoints, metrics and the exported model.

    Raises:
        ValueError: `work_dir` holds a run with another configuration, or another run is at work
            there.
        TrainingDiverged: the loss became NaN or infinite.
    """
    work_dir = Path(work_dir)
    tokenizer = build_byte_tokenizer()
    target_config = config.model.build(len(tokenizer), (tokenizer.eos_token_id,))
    params = _first_params(config, target_config)
    with lock_work_dir(work_dir):  # Behind all that may find a setting wrong.
        provenance = prepare_work_dir(work_dir, config)
        rows = prepare_rows(
            corpus_source(
                tokenizer,
                train_tokens=config.data.train_tokens,
                held_out_tokens=config.data.held_out_tokens,
                word_problem_share=config.data.word_problem_share,
                drill_share=config.data.drill_share,
                seed=config.data.seed,
            ),
            length=config.data.sequence_length,
            data_dir=work_dir / "data",
        )
        batches = row_loader(rows["train"], batch_size=config.train.batch_size, seed=config.seed)

        model = TargetModel(target_config)
        optimizer = make_optimizer(config.train)
        mesh = make_mesh()
        state = fit(
            place_state(
                mesh,
                first_state(params, optimizer),
                target_shardings(target_config, mesh),
            ),
            make_target_step(model, optimizer, config.loss_on),
            batches,
            mesh=mesh,
            batch_size=config.train.batch_size,
            total_steps=config.train.steps,
            config=config.loop,
            work_dir=work_dir,
            provenance=provenance,
            evaluate=make_held_out_loss(
                model, _held_out_batches(rows, config.train.batch_size), config.loss_on
            ),
            score=lambda losses: -float(np.mean(list(losses.values()))),
            step_flops=target_step_flops(
                target_config,
                batch_size=config.train.batch_size,
                length=config.data.sequence_length,
            ),
        )
        target = Target(target_config, state.params)
        export = work_dir / "export"
        save_target(target, export, dtype=config.export_dtype)
        tokenizer.save_pretrained(export)
    return target


def _first_params(config: TrainTargetConfig, target_config: TargetConfig) -> Params:
    """Random weights, or those of another target of the same shape."""
    if not config.init_from:
        return init_target(target_config, jax.random.key(config.seed)).params
    start = load_target(config.init_from)
    if start.config != target_config:
        raise ValueError(
            f"init_from={config.init_from!r} holds {start.config}: must be of the shape that is "
            f"to be trained, {target_config}"
        )
    return start.params


def _held_out_batches(rows: Mapping[str, RowSource], batch_size: int) -> dict[str, list[Rows]]:
    """The held-out rows of each domain in batches; the last is filled up with padding."""
    batches = {}
    for split, source in rows.items():
        if not split.startswith(_HELD_OUT):
            continue
        domain = [source[index] for index in range(len(source))]
        padding = {name: np.zeros_like(array) for name, array in domain[0].items()}
        domain += [padding] * (-len(domain) % batch_size)
        batches[split.removeprefix(_HELD_OUT)] = [
            Rows(**jax.tree.map(lambda *x: np.stack(x), *domain[start : start + batch_size]))
            for start in range(0, len(domain), batch_size)
        ]
    return batches


def next_token_loss(
    logits: jax.Array, tokens: jax.Array, segment_ids: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the wanted tokens given those before them in their own document.

    Args:
        logits: [B, T, V] float32, at each token the prediction of the next.
        tokens: [B, T] int32.
        segment_ids: [B, T] int32, 0 at padding.
        wanted: [B, T] bool.

    Returns:
        [] sum of losses in nats, and [] the number of tokens it runs over.
    """
    labels = tokens[:, 1:]  # [B, T-1]
    counted = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    counted &= wanted[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels)
    return jnp.sum(losses * counted), jnp.sum(counted)


def make_target_step(
    model: TargetModel, optimizer: optax.GradientTransformation, loss_on: str
) -> StepFn:
    """The jitted optimizer step; its state is donated, so it is updated in place."""

    def loss_fn(params: Params, rows: Rows) -> jax.Array:
        total, count = _loss_sums(model, loss_on, params, rows)
        return total / jnp.maximum(count, 1)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, rows: Rows) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradients = jax.value_and_grad(loss_fn)(state.params, rows)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
        return apply_gradients(state, gradients, optimizer), metrics

    return step


def make_held_out_loss(
    model: TargetModel, batches: Mapping[str, Sequence[Rows]], loss_on: str
) -> EvaluateFn:
    """A function from parameters to the held-out loss of each domain, in nats per token."""

    sums = jax.jit(partial(_loss_sums, model, loss_on))

    def evaluate(params: Params) -> dict[str, float]:
        losses = {}
        for domain, domain_batches in batches.items():
            results = np.array([sums(params, rows) for rows in domain_batches], np.float64)
            total, count = results.sum(axis=0)
            losses[f"held_out_{domain}"] = float(total / max(count, 1))
        return losses

    return evaluate


def _loss_sums(
    model: TargetModel, loss_on: str, params: Params, rows: Rows
) -> tuple[jax.Array, jax.Array]:
    logits: Any = model.apply({"params": params}, rows.tokens, rows.positions, rows.segment_ids)
    wanted = rows.response_mask if loss_on == "responses" else jnp.ones_like(rows.response_mask)
    return next_token_loss(logits, rows.tokens, rows.segment_ids, wanted)
