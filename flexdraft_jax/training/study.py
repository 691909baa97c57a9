"""A study of recipes: same data and steps, several seeds, tau of real decoding paired by prompt.

Every run has a directory of its own and resumes by itself, so a study can be spread over time:

    WORK_DIR/RECIPE/seed_N/              a run of the trainer
    WORK_DIR/RECIPE/seed_N/study.json    what its last weights gave on every held-out prompt
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.fingerprints import target_fingerprint, write_json
from flexdraft_jax.data.held_out import distinct_ngrams
from flexdraft_jax.data.prepared import Prepared, prompts_that_fit
from flexdraft_jax.evaluation.measure import answer_prompts
from flexdraft_jax.evaluation.tables import Table, percent
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.checkpoints import lock_work_dir, prepare_work_dir
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.config_files import apply_overrides
from flexdraft_jax.training.draft_loop import train_draft

_CROSS_ENTROPY = (
    "objective.terms.forward_kl=0",
    "objective.terms.cross_entropy=1",
    "objective.slot_weights=exponential",
)

# Overrides of one base configuration; the first is what the others are compared with.
RECIPES: Mapping[str, Sequence[str]] = {
    # What the field reports, but for the learning rate: 2e-4 to 6e-4 is for models of billions.
    "published": (
        *_CROSS_ENTROPY,
        "train.optimizer=adamw",
        "train.schedule=cosine",
        "train.learning_rate=2e-3",
    ),
    "cross_entropy": _CROSS_ENTROPY,
    "forward_kl": ("objective.slot_weights=exponential",),
    "running_cross_entropy": (
        "objective.terms.forward_kl=0",
        "objective.terms.cross_entropy=1",
    ),
    "running_kl": (),
    "running_lk_hybrid": (
        "objective.terms.forward_kl=0",
        "objective.terms.lk_hybrid=1",
    ),
}

_RESULT = "study.json"
_RESAMPLES = 2000

# Of one run: domain -> mean acceptance length of each prompt, and the share of distinct 8-grams.
Result = dict[str, dict]


def run_study(
    base: TrainDraftConfig,
    recipes: Sequence[str],
    seeds: Sequence[int],
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    work_dir: Path,
    say: Callable[[str], None],
) -> dict[str, list[Result]]:
    """Trains and measures what is not there yet.

    Args:
        base: configuration of every run, but for the recipe's overrides and the seed.
        recipes: names from `RECIPES`.
        seeds: of initialisation, anchors and order of the rows.
        target: frozen, in float32.
        tokenizer: of the target.
        prepared: rows and held-out prompts of all runs.
        work_dir: of the study.
        say: told which run is on.

    Returns:
        The results of each recipe, one per seed.

    Raises:
        ValueError: an unknown recipe, a run of `work_dir` with another configuration, target or
            data, another study at work there, or as `train_draft`.
    """
    unknown = [name for name in recipes if name not in RECIPES]
    if unknown or not recipes or not seeds:
        raise ValueError(
            f"recipes={list(recipes)}, seeds={list(seeds)}: must name at least one seed and "
            f"recipes among {', '.join(RECIPES)}"
        )
    fingerprint = target_fingerprint(target)
    results: dict[str, list[Result]] = {name: [] for name in recipes}
    with lock_work_dir(work_dir):
        for seed in seeds:  # All recipes of one seed first: a study that is cut short can be read.
            for name in recipes:
                directory = work_dir / name / f"seed_{seed}"
                recorded = directory / _RESULT
                config = apply_overrides(base, [*RECIPES[name], f"seed={seed}"])
                # Of a finished run too: its numbers would stand in the table for another's.
                prepare_work_dir(directory, config, target=fingerprint, data=prepared.fingerprint)
                if not recorded.exists():
                    say(f"{name}, seed {seed}")
                    draft = train_draft(config, target, tokenizer, prepared, directory)
                    measured = _measure(config, target, draft, tokenizer, prepared)
                    write_json(recorded, measured)
                results[name].append(json.loads(recorded.read_text()))
    return results


def study_table(results: Mapping[str, Sequence[Result]]) -> Table:
    """Tau by recipe and domain, and the gain over the first recipe, paired over prompts."""
    names = list(results)
    domains = sorted(results[names[0]][0])
    reference = {domain: _by_prompt(results[names[0]], domain) for domain in domains}
    rows = []
    for name in names:
        cells = [name.replace("_", " ")]
        for domain in domains:
            taus = [float(np.mean(result[domain]["tau"])) for result in results[name]]
            distinct = float(np.mean([result[domain]["distinct"] for result in results[name]]))
            cells.append(f"{np.mean(taus):.2f} ({min(taus):.2f}-{max(taus):.2f})")
            cells.append(percent(distinct))
        own = {domain: _by_prompt(results[name], domain) for domain in domains}
        gain, low, high = paired_gain(own, reference)
        cells.append("-" if name == names[0] else f"{gain:+.1%} ({low:+.1%} to {high:+.1%})")
        rows.append(tuple(cells))
    columns = ["recipe"]
    for domain in domains:
        shown = (domain or "held out").replace("_", " ")
        columns += [f"tau, {shown}", "distinct 8-grams"]
    seeds = len(results[names[0]])
    prompts = ", ".join(f"{len(reference[domain])}" for domain in domains)
    return Table(
        title="Recipes",
        columns=(*columns, f"gain over {names[0].replace('_', ' ')}"),
        rows=rows,
        note=f"Mean over prompts of each prompt's tau; mean (lowest-highest) of {seeds} seeds, "
        f"{prompts} prompts a domain. Gain: of the mean over domains, with a 95 % interval over "
        "prompts, which both recipes answered.",
    )


def paired_gain(
    own: Mapping[str, NDArray[np.float64]], reference: Mapping[str, NDArray[np.float64]]
) -> tuple[float, float, float]:
    """Relative gain in tau, mean over domains, and the bounds of its 95 % bootstrap interval.

    Args:
        own: tau of each prompt, mean over seeds, by domain.
        reference: the same prompts' with the recipe to compare with.
    """

    def gain(chosen: Mapping[str, NDArray[np.int64]]) -> float:
        means = [np.mean([tau[d][chosen[d]].mean() for d in chosen]) for tau in (own, reference)]
        return float(means[0] / means[1] - 1)

    rng = np.random.default_rng(0)
    resampled = [
        gain({d: rng.integers(0, len(tau), len(tau)) for d, tau in reference.items()})
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return gain({d: np.arange(len(tau)) for d, tau in reference.items()}), float(low), float(high)


def _by_prompt(results: Sequence[Result], domain: str) -> NDArray[np.float64]:
    return np.mean([result[domain]["tau"] for result in results], axis=0)


def _measure(
    config: TrainDraftConfig,
    target: Target,
    draft: Draft,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
) -> Result:
    """Decodes every held-out prompt."""
    limit = target.config.max_position_embeddings
    prompts = prompts_that_fit(prepared.held_out, limit, config.eval.max_new_tokens)
    result: Result = {}
    for domain in sorted({prompt.domain for prompt in prompts}):
        answers = answer_prompts(
            target,
            draft,
            tokenizer,
            [prompt.tokens for prompt in prompts if prompt.domain == domain],
            schedule="sequential",
            max_new_tokens=config.eval.max_new_tokens,
        )
        result[domain] = {
            # A prompt that is answered by its first token takes no step.
            "tau": [float(np.mean(answer.acceptance_lengths or [1])) for answer in answers],
            "distinct": distinct_ngrams([answer.tokens for answer in answers]),
        }
    return result
