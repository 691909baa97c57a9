"""Shows FlexDraft at work in a terminal: `make demo`, or `python infer/demo.py`."""

from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.evaluation.demo import DemoSettings, run_demo
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models

_DEFAULT = DemoSettings()

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts", _DEFAULT.num_prompts, "Held-out prompts per domain."
)
_NUM_TIMED = flags.DEFINE_integer("num_timed", _DEFAULT.num_timed, "How many of them are timed.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens."
)
_REPEATS = flags.DEFINE_integer("repeats", _DEFAULT.repeats, "Repeats of every timing.")
_CONFIDENCE_THRESHOLD = flags.DEFINE_float(
    "confidence_threshold",
    _DEFAULT.confidence_threshold,
    "Drafts less sure than this are not verified; 0 verifies all.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the demo."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    with bad_input_exits():
        settings = DemoSettings(
            num_prompts=_NUM_PROMPTS.value,
            num_timed=_NUM_TIMED.value,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            repeats=_REPEATS.value,
            confidence_threshold=_CONFIDENCE_THRESHOLD.value,
        )
        run_demo(load_models(_TARGET.value, _DRAFT.value), make_console(), settings)


if __name__ == "__main__":
    app.run(main)
