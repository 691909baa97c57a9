"""Trains the draft parameters of a frozen target, from its own responses to an exported drafter."""

from __future__ import annotations

from pathlib import Path

import jax
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.checkpoints.draft import save_draft
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.data.builder import prepare_rows, source_of_turns
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.data.pipeline import row_loader
from flexdraft_jax.evaluation.measure import evaluate_prompts
from flexdraft_jax.models.draft import Draft, init_draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.checkpoints import prepare_work_dir
from flexdraft_jax.training.config import DraftEvalConfig, TrainDraftConfig
from flexdraft_jax.training.draft_step import make_draft_step
from flexdraft_jax.training.loop import EvaluateFn, fit
from flexdraft_jax.training.optimizer import Params, first_state, make_optimizer
from flexdraft_jax.training.progress import track
from flexdraft_jax.training.rollouts import target_fingerprint, write_rollouts


def train_draft(
    config: TrainDraftConfig,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    work_dir: str | Path,
) -> Draft:
    """Trains a drafter on the target's own responses and writes it to `work_dir/export`.

    Started again with the same configuration, target and directory, it continues where it was:
    at the next chunk of responses, or at the newest checkpoint.

    Args:
        config: what to train, on what, and how.
        target: frozen, in float32.
        tokenizer: of the target, with a chat template.
        work_dir: for responses, prepared data, checkpoints, metrics and the exported drafter.

    Raises:
        ValueError: `work_dir` holds a run with another configuration or target, or the drafter
            does not fit the target.
        TrainingDiverged: the loss became NaN or infinite.
    """
    work_dir = Path(work_dir)
    draft = init_draft(
        target,
        num_draft_layers=config.model.num_draft_layers,
        block_size=config.model.block_size,
        calibration_rank=config.model.calibration_rank,
        rng=jax.random.key(config.seed),
    )
    optimizer = make_optimizer(config.train)
    step_fn = make_draft_step(config, target, optimizer)  # Wrong settings fail before any work.
    prepare_work_dir(work_dir, config, target=target_fingerprint(target))
    with track("the target writes its responses", config.data.rollouts) as advance:
        turns = write_rollouts(target, tokenizer, config.data, work_dir / "rollouts", advance)
    rows = prepare_rows(
        source_of_turns("rollouts", {"train": turns}),
        length=config.data.sequence_length,
        data_dir=work_dir / "data",
    )
    state = fit(
        first_state(draft.params, optimizer),
        step_fn,
        row_loader(rows["train"], batch_size=config.train.batch_size, seed=config.seed),
        total_steps=config.train.steps,
        config=config.loop,
        work_dir=work_dir,
        evaluate=make_tau(config.eval, target, draft.config, tokenizer),
    )
    trained = Draft(draft.config, state.params)
    save_draft(trained, target, work_dir / "export", dtype=config.export_dtype)
    return trained


def make_tau(
    config: DraftEvalConfig,
    target: Target,
    draft_config: DraftConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> EvaluateFn:
    """A function from draft parameters to tau of real decoding, per domain of held-out prompts.

    Beside tau stands the share of distinct 8-grams: text that repeats itself is easy to draft.
    """

    def evaluate(params: Params) -> dict[str, float]:
        # In the target's precision, which users will decode in.
        draft = Draft(draft_config, jax.tree.map(lambda x: x.astype(target.dtype), params))
        values = {}
        for domain in config.domains:
            report = evaluate_prompts(
                target,
                draft,
                tokenizer,
                default_prompts(domain)[: config.prompts_per_domain],
                confidence_threshold=0.0,
                max_new_tokens=config.max_new_tokens,
            )
            values[f"tau_{domain}"] = report.tau_steps
            values[f"distinct_{domain}"] = report.distinct_8grams
            if report.accuracy is not None:
                values[f"accuracy_{domain}"] = report.accuracy
        return values

    return evaluate
