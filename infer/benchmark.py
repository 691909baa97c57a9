"""Speed of the schedules beside plain decoding, as ratios in one run.

    python infer/benchmark.py --json bench.json --markdown bench.md
    python infer/benchmark.py --random_target 10m --batch_sizes 1 --max_new_tokens 64

The first decodes held-out prompts with the embedded default. The second needs no trained model:
with random weights a step costs what its shapes cost; where PyTorch is installed, Hugging Face's
own decoding of the same weights is a row of its table.
"""

import json
import pathlib
from collections.abc import Sequence

from absl import app, flags

from flexdraft_jax.evaluation.benchmark import (
    RANDOM_TARGETS,
    BenchmarkSettings,
    benchmark_models,
    benchmark_random,
)
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models

FLAGS = flags.FLAGS
_DEFAULT = BenchmarkSettings()

flags.DEFINE_string("target", None, "Hugging Face directory; the embedded default if left out.")
flags.DEFINE_string("draft", None, "Directory of the target's draft.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights in memory.")
flags.DEFINE_enum(
    "random_target",
    None,
    list(RANDOM_TARGETS),
    "Measure a target of this size with random weights.",
)
flags.DEFINE_list("schedules", list(_DEFAULT.schedules), "Beside ar, which is always measured.")
flags.DEFINE_list("batch_sizes", [str(b) for b in _DEFAULT.batch_sizes], "Rows decoded together.")
flags.DEFINE_list(
    "block_sizes",
    [str(n) for n in _DEFAULT.block_sizes],
    "Block sizes to measure the cost of a step at; decoding takes the first.",
)
flags.DEFINE_float(
    "confidence_threshold",
    _DEFAULT.confidence_threshold,
    "Drafts less sure than this are not verified; 0 verifies all.",
)
flags.DEFINE_integer("num_prompts", _DEFAULT.num_prompts, "Held-out prompts per domain.")
flags.DEFINE_integer("max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens.")
flags.DEFINE_integer("num_slots", _DEFAULT.num_slots, "Cache slots, for the cost of a step.")
flags.DEFINE_integer("num_steps", _DEFAULT.num_steps, "Steps in one call, for their cost.")
flags.DEFINE_integer("repeats", _DEFAULT.repeats, "Of every measurement, interleaved.")
flags.DEFINE_string("json", None, "Write everything measured to this file.")
flags.DEFINE_string("markdown", None, "Write the tables to this file.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark."""
    del argv
    console = make_console()

    def progress(line: str) -> None:
        console.print(line, style="dim", markup=False)

    with bad_input_exits():
        settings = BenchmarkSettings(
            schedules=tuple(FLAGS.schedules),
            batch_sizes=tuple(map(int, FLAGS.batch_sizes)),
            block_sizes=tuple(map(int, FLAGS.block_sizes)),
            confidence_threshold=FLAGS.confidence_threshold,
            num_prompts=FLAGS.num_prompts,
            max_new_tokens=FLAGS.max_new_tokens,
            num_slots=FLAGS.num_slots,
            num_steps=FLAGS.num_steps,
            repeats=FLAGS.repeats,
        )
        if FLAGS.random_target:
            report = benchmark_random(FLAGS.random_target, settings, progress)
        else:
            models = load_models(FLAGS.target, FLAGS.draft, dtype=FLAGS.dtype)
            report = benchmark_models(models, settings, progress)
    for table in report.tables():
        console.print(table.to_rich())
    if FLAGS.json:
        pathlib.Path(FLAGS.json).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    if FLAGS.markdown:
        text = "\n".join(table.to_markdown() for table in report.tables())
        pathlib.Path(FLAGS.markdown).write_text(text)


if __name__ == "__main__":
    app.run(main)
