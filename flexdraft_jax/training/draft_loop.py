"""Attention Tuning: trains the draft parameters of a frozen target on prepared rows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import jax
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.checkpoints.draft import load_draft
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.data.fingerprints import target_fingerprint, tokenizer_fingerprint
from flexdraft_jax.data.held_out import distinct_ngrams
from flexdraft_jax.data.pipeline import row_loader
from flexdraft_jax.data.prepared import HeldOut, Prepared, prompts_that_fit
from flexdraft_jax.evaluation.measure import answer_prompts, mean_tau_of
from flexdraft_jax.models.draft import Draft, draft_shardings, init_draft
from flexdraft_jax.models.target import Target, spread_target
from flexdraft_jax.parallel.mesh import mesh_of
from flexdraft_jax.parallel.processes import main_first
from flexdraft_jax.training.checkpoints import lock_work_dir, prepare_work_dir
from flexdraft_jax.training.config import DraftEvalConfig, TrainDraftConfig
from flexdraft_jax.training.distributed import batch_share, place_state
from flexdraft_jax.training.draft_step import make_draft_step
from flexdraft_jax.training.flops import draft_step_flops
from flexdraft_jax.training.loop import EvaluateFn, OnEvaluation, fit, mean_tau
from flexdraft_jax.training.optimizer import Params, first_state, make_optimizer


def train_draft(
    config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    work_dir: str | Path,
    on_evaluation: OnEvaluation | None = None,
) -> Draft:
    """Trains a drafter; its checkpoints, the best by tau among them, lie in `work_dir`.

    Started again with the same configuration, target, data and directory, it resumes at the newest
    good checkpoint. On several processes, all of them call it alike.

    Args:
        config: what to train and how.
        target: frozen; on the run's mesh, `config.mesh.build()`, or whole on this process.
        tokenizer: of the target.
        prepared: rows to train on and prompts to measure tau on, tokenized for this target.
        work_dir: for checkpoints, metrics and plots; the same for all processes.
        on_evaluation: called on process 0 with the step and what decoding gave there, once it is
            in the metrics file and the plot.

    Returns:
        The drafter after the last step, spread over the mesh; the best one may be another.

    Raises:
        ValueError: `work_dir` holds a run with another configuration, target or data, or another
            run is at work there; the drafter does not fit the target, or the data is of another
            tokenizer or holds no prompts out.
        TrainingDiverged: the loss became NaN or infinite.
        TrainingStopped: a signal ended the run early; the last step is saved.
    """
    work_dir = Path(work_dir)
    check_data(prepared, tokenizer, target)
    if config.anchors > prepared.sequence_length:
        raise ValueError(
            f"anchors={config.anchors}: must be at most the data's rows of "
            f"{prepared.sequence_length} tokens"
        )
    draft = _first_draft(config, target)
    mesh = config.mesh.build()
    optimizer = make_optimizer(config.train)
    state = place_state(
        mesh,
        first_state(draft.params, optimizer),
        draft_shardings(target.config, draft.config, mesh),
    )
    # Where it is already: a second copy would take as much memory again.
    there = mesh.size == 1 or mesh_of(target.params) == mesh
    spread = target if there else spread_target(target, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = make_draft_step(config, spread, optimizer, places)
    share = batch_share(mesh, config.train.batch_size)
    rows = row_loader(
        prepared.rows,
        batch_size=config.train.batch_size // share.count,
        seed=config.seed,
        process_index=share.index,
        process_count=share.count,
    )
    evaluate = make_tau(config.eval, spread, draft.config, tokenizer, prepared.held_out)
    fingerprint = target_fingerprint(target)
    with lock_work_dir(work_dir):
        with main_first("the working directory is prepared"):
            provenance = prepare_work_dir(
                work_dir, config, target=fingerprint, data=prepared.fingerprint
            )
        trained = fit(
            state,
            step_fn,
            rows,
            mesh=mesh,
            batch_size=config.train.batch_size,
            total_steps=config.train.steps,
            config=config.loop,
            work_dir=work_dir,
            provenance=provenance,
            evaluate=evaluate,
            score=mean_tau,
            step_flops=draft_step_flops(
                target.config,
                draft.config,
                batch_size=config.train.batch_size,
                length=prepared.sequence_length,
                anchors=config.anchors,
            ),
            on_evaluation=on_evaluation,
        )
    return Draft(draft.config, trained.params)


def check_data(prepared: Prepared, tokenizer: PreTrainedTokenizerBase, target: Target) -> None:
    """Raises ValueError where prepared data is not for this target, or nothing measures tau."""
    if prepared.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
        raise ValueError(
            "the data was prepared with another tokenizer or chat template than the target's: "
            "prepare it again with this target"
        )
    if not prepared.held_out:
        raise ValueError("the data holds no prompts out: prepare it with held_out of at least 1")
    if prepared.sequence_length > target.config.max_position_embeddings:
        raise ValueError(
            f"the data has rows of {prepared.sequence_length} tokens: must be at most the "
            f"target's max_position_embeddings={target.config.max_position_embeddings}"
        )


def make_tau(
    config: DraftEvalConfig,
    target: Target,
    draft_config: DraftConfig,
    tokenizer: PreTrainedTokenizerBase,
    held_out: list[HeldOut],
) -> EvaluateFn:
    """A function from draft parameters to what real decoding of held-out prompts gives.

    It returns tau and the share of distinct 8-grams of every domain; loops would flatter tau. The
    weights stay spread as they are in training, and all processes decode the same prompts.
    """
    by_domain: dict[str, list[list[int]]] = defaultdict(list)
    positions = target.config.max_position_embeddings
    for prompt in prompts_that_fit(held_out, positions, config.max_new_tokens):
        if len(by_domain[prompt.domain]) < config.prompts_per_domain:
            by_domain[prompt.domain].append(prompt.tokens)

    def evaluate(params: Params) -> dict[str, float]:
        # In the target's precision, which users will decode in.
        draft = Draft(draft_config, jax.tree.map(lambda x: x.astype(target.dtype), params))
        values = {}
        for domain, prompts in sorted(by_domain.items()):
            answers = answer_prompts(
                target,
                draft,
                tokenizer,
                prompts,
                schedule="sequential",
                max_new_tokens=config.max_new_tokens,
            )
            name = domain or "held_out"
            values[f"tau_{name}"] = mean_tau_of(answers)
            values[f"distinct_{name}"] = distinct_ngrams([answer.tokens for answer in answers])
        return values

    return evaluate


def _first_draft(config: TrainDraftConfig, target: Target) -> Draft:
    """Copies of the target's projections, or a warm start: the weights of another drafter."""
    model = config.model
    if not config.init_from:
        return init_draft(
            target,
            num_draft_layers=model.num_draft_layers,
            block_size=model.block_size,
            calibration_rank=model.calibration_rank,
            rng=jax.random.key(config.seed),
        )
    draft = load_draft(config.init_from, target)
    if draft.config != model:
        raise ValueError(
            f"init_from={config.init_from!r} holds {draft.config}: must be of the shape that is to "
            f"be trained, {model}"
        )
    return draft
