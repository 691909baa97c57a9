"""Tau, repetition, right answers and losslessness on held-out prompts of both domains.

python infer/measure_tau.py --num_prompts 100 --json tau.json
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from absl import app, flags

from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models
from flexdraft_jax.evaluation.measure import evaluate_prompts, report_table

FLAGS = flags.FLAGS

flags.DEFINE_string("target", None, "Hugging Face directory; the embedded default if left out.")
flags.DEFINE_string("draft", None, "Directory of the target's draft.")
flags.DEFINE_integer("num_prompts", 100, "Held-out prompts per domain.", lower_bound=1)
flags.DEFINE_integer("max_new_tokens", 320, "Longest answer, in tokens.", lower_bound=1)
flags.DEFINE_integer("block_size", None, "Tokens of a candidate block; the draft's own if None.")
flags.DEFINE_float(
    "confidence_threshold", 0.0, "Drafts less sure than this are not verified; 0 verifies all."
)
flags.DEFINE_enum("schedule", "sequential", ["parallel", "sequential"], "Tau is the same in both.")
flags.DEFINE_integer("batch_size", 25, "Prompts decoded together.", lower_bound=1)
flags.DEFINE_bool("compare", True, "Decode plainly too, and count the answers that are equal.")
flags.DEFINE_string("json", None, "Write the numbers to this file.")
flags.DEFINE_string("markdown", None, "Write the table to this file.")


def main(argv: Sequence[str]) -> None:
    """Measures both domains."""
    del argv
    with bad_input_exits():
        models = load_models(FLAGS.target, FLAGS.draft)
        reports = [
            evaluate_prompts(
                models.target,
                models.draft,
                models.tokenizer,
                default_prompts(domain)[: FLAGS.num_prompts],
                schedule=FLAGS.schedule,
                block_size=FLAGS.block_size,
                confidence_threshold=FLAGS.confidence_threshold,
                max_new_tokens=FLAGS.max_new_tokens,
                batch_size=FLAGS.batch_size,
                compare=FLAGS.compare,
            )
            for domain in DOMAINS
        ]
    table = report_table(reports)
    make_console().print(table.to_rich())
    if FLAGS.json:
        numbers = [dataclasses.asdict(report) for report in reports]
        pathlib.Path(FLAGS.json).write_text(json.dumps(numbers, indent=2) + "\n")
    if FLAGS.markdown:
        pathlib.Path(FLAGS.markdown).write_text(table.to_markdown())


if __name__ == "__main__":
    app.run(main)
