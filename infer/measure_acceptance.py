"""Which share of the drafts each rule of random decoding accepts, on held-out prompts.

python infer/measure_acceptance.py --json acceptance.json
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.evaluation.acceptance import acceptance_table, measure_acceptance
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, load_models

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_TEMPERATURES = flags.DEFINE_multi_float("temperature", [0.3, 0.7, 1.0], "May be repeated.")
_NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts", 25, "Held-out prompts per domain, decoded together.", lower_bound=1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 256, "Longest answer, in tokens.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the random numbers.")
_JSON = flags.DEFINE_string("json", None, "Write the numbers to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")


def main(argv: Sequence[str]) -> None:
    """Measures both domains at each temperature."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    with bad_input_exits():
        check_outputs(_JSON.value, _MARKDOWN.value)
        prompts = {domain: default_prompts(domain, _NUM_PROMPTS.value) for domain in DOMAINS}
        models = load_models(_TARGET.value, _DRAFT.value)
        rows = [
            measure_acceptance(
                models.target,
                models.draft,
                [
                    encode_turn(models.tokenizer, prompt.prompt, None).tokens
                    for prompt in prompts[domain]
                ],
                domain=domain,
                temperature=temperature,
                max_new_tokens=_MAX_NEW_TOKENS.value,
                seed=_SEED.value,
            )
            for domain in DOMAINS
            for temperature in _TEMPERATURES.value
        ]
    table = acceptance_table(rows)
    make_console().print(table.to_rich())
    if _JSON.value:
        numbers = [dataclasses.asdict(row) for row in rows]
        pathlib.Path(_JSON.value).write_text(json.dumps(numbers, indent=2) + "\n")
    if _MARKDOWN.value:
        pathlib.Path(_MARKDOWN.value).write_text(table.to_markdown())


if __name__ == "__main__":
    app.run(main)
