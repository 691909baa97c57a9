"""Tau, repetition, right answers and losslessness on held-out prompts of both domains.

python infer/measure_tau.py --num_prompts 100 --json tau.json
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, load_models
from flexdraft_jax.evaluation.measure import evaluate_prompts, report_table

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts", 100, "Held-out prompts per domain.", lower_bound=1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 320, "Longest answer, in tokens.", lower_bound=1
)
_BLOCK_SIZE = flags.DEFINE_integer(
    "block_size", None, "Tokens of a candidate block; the draft's own if None."
)
_CONFIDENCE_THRESHOLD = flags.DEFINE_float(
    "confidence_threshold", 0.0, "Drafts less sure than this are not verified; 0 verifies all."
)
_SCHEDULE = flags.DEFINE_enum(
    "schedule", "sequential", ["parallel", "sequential"], "Tau is the same in both."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 25, "Prompts decoded together.", lower_bound=1)
_COMPARE = flags.DEFINE_bool(
    "compare", True, "Decode plainly too, and count the answers that are equal."
)
_JSON = flags.DEFINE_string("json", None, "Write the numbers to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")


def main(argv: Sequence[str]) -> None:
    """Measures both domains."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    with bad_input_exits():
        check_outputs(_JSON.value, _MARKDOWN.value)
        prompts = {domain: default_prompts(domain, _NUM_PROMPTS.value) for domain in DOMAINS}
        models = load_models(_TARGET.value, _DRAFT.value)
        reports = [
            evaluate_prompts(
                models.target,
                models.draft,
                models.tokenizer,
                prompts[domain],
                schedule=_SCHEDULE.value,
                block_size=_BLOCK_SIZE.value,
                confidence_threshold=_CONFIDENCE_THRESHOLD.value,
                max_new_tokens=_MAX_NEW_TOKENS.value,
                batch_size=_BATCH_SIZE.value,
                compare=_COMPARE.value,
            )
            for domain in DOMAINS
        ]
    table = report_table(reports)
    make_console().print(table.to_rich())
    if _JSON.value:
        numbers = [dataclasses.asdict(report) for report in reports]
        pathlib.Path(_JSON.value).write_text(json.dumps(numbers, indent=2) + "\n")
    if _MARKDOWN.value:
        pathlib.Path(_MARKDOWN.value).write_text(table.to_markdown())


if __name__ == "__main__":
    app.run(main)
