"""Answers one prompt, as it is decoded.

    python infer/generate.py --prompt "Mia has 6 stamps and buys 9 more. How many has she now?"
    echo "..." | python infer/generate.py --target DIR --draft DIR --compare

The text goes to standard output, everything about it to standard error.
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import app, flags

from flexdraft_jax.evaluation.generation import (
    GenerationSettings,
    answer_live,
    compare_with_plain,
    encode_prompt,
)
from flexdraft_jax.evaluation.highlight import Highlighter, make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models

FLAGS = flags.FLAGS
_DEFAULT = GenerationSettings()

flags.DEFINE_string("target", None, "Hugging Face directory; the embedded default if left out.")
flags.DEFINE_string("draft", None, "Directory of the target's draft.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights in memory.")
flags.DEFINE_string("prompt", None, "The prompt; read from standard input if left out.")
flags.DEFINE_bool("raw", False, "Take the prompt as it is, without the chat template.")
flags.DEFINE_integer("max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens.")
flags.DEFINE_enum(
    "schedule",
    _DEFAULT.schedule,
    ["ar", "parallel", "sequential"],
    "Only the speed depends on it: ar is plain decoding, sequential suits CPUs and batches, "
    "parallel suits accelerators at batch 1.",
)
flags.DEFINE_integer("block_size", None, "Tokens of a candidate block; the draft's own if None.")
flags.DEFINE_float(
    "confidence_threshold",
    _DEFAULT.confidence_threshold,
    "Drafts less sure than this are not verified; 0 verifies all.",
)
flags.DEFINE_bool("compare", False, "Decode plainly too, and compare tokens and speed.")
flags.DEFINE_bool("highlight", False, "Mark accepted drafts in the text.")


def main(argv: Sequence[str]) -> None:
    """Answers the prompt."""
    del argv
    settings = GenerationSettings(
        FLAGS.max_new_tokens, FLAGS.schedule, FLAGS.block_size, FLAGS.confidence_threshold
    )
    with bad_input_exits():
        if FLAGS.compare and FLAGS.schedule == "ar":
            raise ValueError("--compare needs another schedule than ar, which is plain decoding")
        text = _read_prompt() if FLAGS.prompt is None else FLAGS.prompt
        models = load_models(FLAGS.target, FLAGS.draft, dtype=FLAGS.dtype)
        prompt = encode_prompt(models, text, raw=FLAGS.raw)
        highlighter = Highlighter(make_console(), enabled=FLAGS.highlight)
        answer = answer_live(models, prompt, settings, highlighter.write)
    highlighter.close()
    report = make_console(stderr=True)
    report.print(answer.describe(), markup=False)
    if FLAGS.compare:
        report.print("\nPlain decoding:")
        highlighter = Highlighter(report, enabled=False)
        plain = dataclasses.replace(settings, schedule="ar")
        answer = answer_live(models, prompt, plain, highlighter.write)
        highlighter.close()
        report.print(answer.describe(), markup=False)
        report.print(compare_with_plain(models, prompt, settings).to_rich())


def _read_prompt() -> str:
    """Standard input, without the line break that ends it."""
    if sys.stdin.isatty():
        print("Type a prompt; Ctrl-D ends it.", file=sys.stderr)
    return sys.stdin.read().removesuffix("\n")


if __name__ == "__main__":
    app.run(main)
