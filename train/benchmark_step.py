"""Time and memory of a training step beside a plain one, as ratios in one run.

    python train/benchmark_step.py --random_target 10m --vocab_size 32768 --json step.json
    python train/benchmark_step.py --target path/to/target --compute_dtype bfloat16 \
        --sequence_length 2048 --anchors 256 --chunk 16

The plain step runs clean and mask tokens side by side through one differentiated pass and computes
all logits at once. Weights of the drafter are random: a step costs what its shapes cost.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging

from flexdraft_jax.checkpoints.hf import load_target
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.evaluation.highlight import make_console, progress_on
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs
from flexdraft_jax.evaluation.random_targets import RANDOM_TARGETS
from flexdraft_jax.models.attention import BACKENDS
from flexdraft_jax.models.target import Target, init_target
from flexdraft_jax.training.config import DraftStepConfig
from flexdraft_jax.training.step_benchmark import StepBenchmarkSettings, benchmark_step

_TARGET = flags.DEFINE_string("target", None, "Hugging Face directory of the target.")
_RANDOM_TARGET = flags.DEFINE_enum(
    "random_target", "10m", list(RANDOM_TARGETS), "Size of a target with random weights."
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "Of the random target; that of its size if left out.", lower_bound=1
)
_DRAFT_LAYERS = flags.DEFINE_integer("draft_layers", 2, "D.")
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 8, "n.")
_CALIBRATION_RANK = flags.DEFINE_integer("calibration_rank", 64, "r.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Packed rows per step.")
_SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 256, "Tokens of a row.")
_ANCHORS = flags.DEFINE_integer("anchors", 32, "Mask groups of a row.")
_CHUNK = flags.DEFINE_integer("chunk", 4, "Mask groups of a row worked off at a time; 0 all.")
_MICROBATCHES = flags.DEFINE_integer("microbatches", 1, "Parts the rows are worked off in.")
_REMAT = flags.DEFINE_bool("remat", False, "Recompute draft layers in the backward pass.")
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ["float32", "bfloat16"], "Of both steps."
)
_ATTENTION = flags.DEFINE_enum(
    "attention", "reference", list(BACKENDS), "Of clean tokens in our step; pallas: TPUs, GPUs."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of both steps, interleaved.")
_JSON = flags.DEFINE_string("json", None, "Write everything measured to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    console = make_console()
    progress = progress_on(console)
    # absl has checked that they are among the possible ones.
    compute_dtype: Any = _COMPUTE_DTYPE.value
    attention: Any = _ATTENTION.value
    with bad_input_exits():
        check_outputs(_JSON.value, _MARKDOWN.value)
        settings = StepBenchmarkSettings(
            DraftConfig(_DRAFT_LAYERS.value, _BLOCK_SIZE.value, _CALIBRATION_RANK.value),
            batch_size=_BATCH_SIZE.value,
            sequence_length=_SEQUENCE_LENGTH.value,
            anchors=_ANCHORS.value,
            step=DraftStepConfig(
                compute_dtype=compute_dtype,
                microbatches=_MICROBATCHES.value,
                chunk=_CHUNK.value,
                remat=_REMAT.value,
                attention=attention,
            ),
            repeats=_REPEATS.value,
        )
        target, name = _load_target()
        report = benchmark_step(target, settings, name, progress)
    console.print(report.table().to_rich())
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    if _MARKDOWN.value:
        pathlib.Path(_MARKDOWN.value).write_text(report.table().to_markdown())


def _load_target() -> tuple[Target, str]:
    """The target and its name."""
    if _TARGET.value is not None:
        if _VOCAB_SIZE.value is not None:
            raise ValueError(
                f"vocab_size={_VOCAB_SIZE.value}: goes with --random_target; --target has its own"
            )
        return load_target(_TARGET.value, dtype=_COMPUTE_DTYPE.value), _TARGET.value
    config = RANDOM_TARGETS[_RANDOM_TARGET.value]
    if _VOCAB_SIZE.value is not None:
        config = dataclasses.replace(config, vocab_size=_VOCAB_SIZE.value)
    target = init_target(config, jax.random.key(0), _COMPUTE_DTYPE.value)
    return target, f"random weights {_RANDOM_TARGET.value}"


if __name__ == "__main__":
    app.run(main)
