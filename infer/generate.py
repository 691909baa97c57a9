"""Answers one prompt, as it is decoded.

    python infer/generate.py --prompt "Mia has 6 stamps and buys 9 more. How many has she now?"
    echo "..." | python infer/generate.py --target DIR --draft DIR --compare
    python infer/generate.py --target DIR --draft DIR --mesh tensor=8 --prompt "..."

The text goes to standard output, everything about it to standard error.
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.data.chat import parse_template_kwargs
from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.decoding.sampling import SAMPLING_RULES
from flexdraft_jax.evaluation.generation import (
    GenerationSettings,
    answer_live,
    compare_with_plain,
    encode_prompt,
)
from flexdraft_jax.evaluation.highlight import Highlighter, make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models
from flexdraft_jax.models.attention import BACKENDS
from flexdraft_jax.parallel import processes
from flexdraft_jax.parallel.mesh import parse_mesh

_DEFAULT = GenerationSettings()

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights in memory.")
_MESH = flags.DEFINE_string(
    "mesh", None, "Spread the weights over devices, as in data=2,tensor=4; one device if left out."
)
_POD = flags.DEFINE_bool("pod", False, "Join the other hosts of a TPU pod.")
_PROMPT = flags.DEFINE_string("prompt", None, "The prompt; read from standard input if left out.")
_RAW = flags.DEFINE_bool("raw", False, "Take the prompt as it is, without the chat template.")
_TEMPLATE_KWARGS = flags.DEFINE_string(
    "template_kwargs", "{}", "Variables of the chat template, as a JSON object."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens."
)
_SCHEDULE = flags.DEFINE_enum(
    "schedule",
    _DEFAULT.schedule,
    list(SCHEDULES),
    "Only the speed depends on it. flex chooses step by step, ar is plain decoding.",
)
_BLOCK_SIZE = flags.DEFINE_integer(
    "block_size", None, "Tokens of a candidate block; the draft's own if None."
)
_CONFIDENCE_THRESHOLD = flags.DEFINE_float(
    "confidence_threshold",
    _DEFAULT.confidence_threshold,
    "Drafts less sure than this are not verified; 0 verifies all.",
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", _DEFAULT.temperature, "0 takes the most likely token each time."
)
_TOP_K = flags.DEFINE_integer(
    "top_k", _DEFAULT.top_k, "Draw from this many most likely tokens; 0 is all of them."
)
_TOP_P = flags.DEFINE_float(
    "top_p",
    _DEFAULT.top_p,
    "Draw from the fewest most likely tokens that have this probability together.",
)
_MIN_P = flags.DEFINE_float(
    "min_p",
    _DEFAULT.min_p,
    "Draw from tokens with at least this share of the largest probability.",
)
_SEED = flags.DEFINE_integer("seed", _DEFAULT.seed, "Of the random numbers.")
_SAMPLING = flags.DEFINE_enum(
    "sampling",
    _DEFAULT.sampling,
    list(SAMPLING_RULES),
    "How drafts are accepted at temperature > 0: coupled gives the tokens of plain decoding with "
    "the same seed, rejection tokens of the same law, a little faster.",
)
_ATTENTION = flags.DEFINE_enum(
    "attention", "reference", list(BACKENDS), "To the cache; pallas is a kernel for TPUs and GPUs."
)
_COMPARE = flags.DEFINE_bool("compare", False, "Decode plainly too, and compare tokens and speed.")
_HIGHLIGHT = flags.DEFINE_bool("highlight", False, "Mark accepted drafts in the text.")


def main(argv: Sequence[str]) -> None:
    """Answers the prompt."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    settings = GenerationSettings(
        max_new_tokens=_MAX_NEW_TOKENS.value,
        schedule=_SCHEDULE.value,
        block_size=_BLOCK_SIZE.value,
        confidence_threshold=_CONFIDENCE_THRESHOLD.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        min_p=_MIN_P.value,
        seed=_SEED.value,
        sampling=_SAMPLING.value,
        attention=_ATTENTION.value,
    )
    with bad_input_exits():
        processes.initialize(pod=_POD.value)
        if _COMPARE.value and _SCHEDULE.value == "ar":
            raise ValueError("--compare needs another schedule than ar, which is plain decoding")
        if _COMPARE.value and settings.temperature > 0 and settings.sampling == "rejection":
            raise ValueError(
                "--compare needs --sampling=coupled: rejection gives tokens of the same law as "
                "plain decoding, and not the same tokens"
            )
        template_kwargs = parse_template_kwargs(_TEMPLATE_KWARGS.value)
        # On several hosts all decode the same prompt together, and the first one shows it.
        text = processes.gather(_read_prompt() if processes.is_main() else "")[0]
        mesh = None if _MESH.value is None else parse_mesh(_MESH.value).build()
        models = load_models(_TARGET.value, _DRAFT.value, dtype=_DTYPE.value, mesh=mesh)
        prompt = encode_prompt(models, text, raw=_RAW.value, template_kwargs=template_kwargs)
        quiet = not processes.is_main()
        highlighter = Highlighter(make_console(quiet=quiet), enabled=_HIGHLIGHT.value)
        answer = answer_live(models, prompt, settings, highlighter.write)
    highlighter.close()
    report = make_console(stderr=True, quiet=quiet)
    report.print(answer.describe(), markup=False)
    if _COMPARE.value:
        report.print("\nPlain decoding:")
        highlighter = Highlighter(report, enabled=False)
        plain = dataclasses.replace(settings, schedule="ar")
        answer = answer_live(models, prompt, plain, highlighter.write)
        highlighter.close()
        report.print(answer.describe(), markup=False)
        report.print(compare_with_plain(models, prompt, settings).to_rich())


def _read_prompt() -> str:
    """The flag, or standard input without the line break that ends it."""
    if _PROMPT.value is not None:
        return _PROMPT.value
    if sys.stdin.isatty():
        print("Type a prompt; Ctrl-D ends it.", file=sys.stderr)
    return sys.stdin.read().removesuffix("\n")


if __name__ == "__main__":
    app.run(main)
