"""From a run's best checkpoint to a directory in the published format, proven by decoding."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.checkpoints.draft import load_draft, save_draft
from flexdraft_jax.checkpoints.paths import read_json
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.data.fingerprints import target_fingerprint
from flexdraft_jax.data.prepared import HeldOut, Prepared, prompts_that_fit
from flexdraft_jax.evaluation.measure import answer_prompts, mean_tau_of, rows_equal
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.models.draft import Draft, draft_shapes
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.checkpoints import Saved, load_best
from flexdraft_jax.training.draft_loop import check_data

# All that an export consists of.
_FILES = ("README.md", "config.json", "model.safetensors")
PROOF_PROMPTS = 8
# Tau on a few prompts is noisy; weights that were mixed up come to about 1.
_LEAST_SHARE_OF_TAU = 0.5


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was exported and how it decodes once loaded again.

    Attributes:
        step: that the weights were saved after.
        metrics: of the evaluation at that step.
        tau: of the exported files, on a few held-out prompts.
        num_prompts: how many.
        num_equal: of them, how many were answered token for token like plain decoding.
        num_tokens: that they were answered with.
        damaged: what is wrong with checkpoints that could not be considered.
    """

    step: int
    metrics: dict[str, float]
    tau: float
    num_prompts: int
    num_equal: int
    num_tokens: int
    damaged: dict[int, str]

    def table(self, output: str) -> Table:
        """What a person wants to see at the end."""
        measured = [
            (name.replace("_", " "), f"{value:.2f}")
            for name, value in sorted(self.metrics.items())
            if name != "score"
        ]
        return Table(
            title="Exported",
            columns=("", ""),
            rows=[
                ("step", f"{self.step:,}"),
                *measured,
                (f"tau of the files, {self.num_prompts} prompts", f"{self.tau:.2f}"),
                ("equal to plain decoding", f"{self.num_equal} of {self.num_prompts}"),
                *((f"left out: step {step}", wrong) for step, wrong in self.damaged.items()),
            ],
            note=f"In {output}",
        )


def export_draft(
    work_dir: str | Path,
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    output: str | Path,
    *,
    dtype: str = "bfloat16",
    max_new_tokens: int = 128,
) -> ExportReport:
    """Writes the best drafter of a run, loads it again and decodes held-out prompts with it.

    Args:
        work_dir: of the run.
        target: that the run was for.
        tokenizer: of the target.
        prepared: data of the run; the first few of its held-out prompts are decoded.
        output: directory to write: the weights, `config.json` and a model card.
        dtype: of the stored weights, "float32" or "bfloat16".
        max_new_tokens: longest answer.

    Raises:
        ValueError: `output` holds other files than a draft's; `work_dir` holds no run for this
            target and data or no good checkpoint, or the exported files do not decode as they
            must; then no file is written.
    """
    work_dir, output = Path(work_dir), Path(output)
    _check_output(output)
    check_data(prepared, tokenizer, target)
    config = _recorded_config(work_dir, target, prepared)
    positions = target.config.max_position_embeddings
    held_out = prompts_that_fit(prepared.held_out, positions, max_new_tokens)[:PROOF_PROMPTS]
    try:
        draft_config = DraftConfig(**config["model"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{work_dir / 'config.json'}: model is damaged: {error}") from error
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        draft_shapes(target.config, draft_config),
    )
    saved = load_best(work_dir / "checkpoints", shapes)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix="unproven_") as unproven:
        save_draft(Draft(draft_config, saved.params), target, unproven, dtype=dtype)
        report = _prove(target, tokenizer, held_out, Path(unproven), saved, max_new_tokens)
        (Path(unproven) / "README.md").write_text(_model_card(config, saved, report))
        for file in Path(unproven).iterdir():
            file.replace(output / file.name)
    return report


def _check_output(output: Path) -> None:
    """Raises ValueError where something else than an earlier export would be overwritten."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"output={str(output)!r}: must be a directory, and is a file")
    others = sorted(file.name for file in output.iterdir() if file.name not in _FILES)
    config = output / "config.json"
    if others or (config.exists() and b"flexdraft_config" not in config.read_bytes()):
        raise ValueError(
            f"output={str(output)!r}: must be a new directory or an earlier export, and holds "
            + ", ".join(others or ["the config.json of something else"])
        )


def _recorded_config(work_dir: Path, target: Target, prepared: Prepared) -> dict[str, Any]:
    try:
        config = read_json(work_dir / "config.json")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"work_dir={str(work_dir)!r} holds no run of train/train_draft.py: {error}"
        ) from error
    if config.get("target") != target_fingerprint(target):
        raise ValueError(
            f"work_dir={str(work_dir)!r} holds a run for target {config.get('target')}: must be "
            f"this target, {target_fingerprint(target)}"
        )
    if config.get("data") != prepared.fingerprint:
        raise ValueError(
            f"work_dir={str(work_dir)!r} holds a run on data {config.get('data')}: must be "
            f"this data, {prepared.fingerprint}"
        )
    return config


def _prove(
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    held_out: list[HeldOut],
    output: Path,
    saved: Saved,
    max_new_tokens: int,
) -> ExportReport:
    """Decodes with what lies in `output`, as a user would."""
    prompts = [prompt.tokens for prompt in held_out]
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": PROOF_PROMPTS}
    drafted = answer_prompts(
        target, load_draft(output, target), tokenizer, prompts, schedule="sequential", **settings
    )
    plain = answer_prompts(target, None, tokenizer, prompts, schedule="ar", **settings)
    num_equal = rows_equal(drafted, plain)
    if num_equal < len(prompts) and target.dtype == jnp.float32:
        raise ValueError(f"only {num_equal} of {len(prompts)} answers equal plain decoding")
    tau = mean_tau_of(drafted)
    measured = [value for name, value in saved.metrics.items() if name.startswith("tau_")]
    if measured and tau < _LEAST_SHARE_OF_TAU * float(np.mean(measured)):
        raise ValueError(
            f"tau is {tau:.2f} on {len(prompts)} prompts where training measured "
            f"{float(np.mean(measured)):.2f}: the files do not hold what was trained"
        )
    return ExportReport(
        step=saved.step,
        metrics=saved.metrics,
        tau=tau,
        num_prompts=len(prompts),
        num_equal=num_equal,
        num_tokens=sum(len(answer.tokens) for answer in drafted),
        damaged=saved.damaged,
    )


def _model_card(config: dict[str, Any], saved: Saved, report: ExportReport) -> str:
    names = sorted(name[len("tau_") :] for name in saved.metrics if name.startswith("tau_"))
    lines = [
        f"| {name} | {saved.metrics[f'tau_{name}']:.2f} | {saved.metrics[f'distinct_{name}']:.0%} |"
        for name in names
    ]
    versions = ", ".join(f"{name} {v}" for name, v in saved.provenance["versions"].items())
    recipe = {name: part for name, part in config.items() if name not in ("target", "data")}
    return f"""# FlexDraft drafter

Draft parameters for one frozen target; load them with `flexdraft_jax.load_draft`.

| | |
| --- | --- |
| target | fingerprint {config["target"]} |
| data | fingerprint {config["data"]} |
| step | {saved.step:,} |
| made with | {versions} |

## Tau of real decoding

Held-out prompts, greedy, every draft verified; loops would flatter tau and show as few distinct
8-grams.

| prompts | tau | distinct 8-grams |
| --- | ---: | ---: |
{chr(10).join(lines)}

The files here were loaded again and gave tau {report.tau:.2f} on {report.num_prompts} prompts,
{report.num_tokens:,} tokens; {report.num_equal} answers equal plain decoding.

## Recipe

```json
{json.dumps(recipe, indent=2)}
```
"""
