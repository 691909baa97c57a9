"""Shows FlexDraft at work in a terminal: `make demo`, or `python infer/demo.py`."""

from collections.abc import Sequence

from absl import app, flags

from flexdraft_jax.evaluation.demo import DemoSettings, run_demo
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models

FLAGS = flags.FLAGS
_DEFAULT = DemoSettings()

flags.DEFINE_string("target", None, "Hugging Face directory; the embedded default if left out.")
flags.DEFINE_string("draft", None, "Directory of the target's draft.")
flags.DEFINE_integer("num_prompts", _DEFAULT.num_prompts, "Held-out prompts per domain.")
flags.DEFINE_integer("num_timed", _DEFAULT.num_timed, "How many of them are timed.")
flags.DEFINE_integer("max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens.")
flags.DEFINE_integer("repeats", _DEFAULT.repeats, "Repeats of every timing.")


def main(argv: Sequence[str]) -> None:
    """Runs the demo."""
    del argv
    with bad_input_exits():
        models = load_models(FLAGS.target, FLAGS.draft)
    settings = DemoSettings(
        num_prompts=FLAGS.num_prompts,
        num_timed=FLAGS.num_timed,
        max_new_tokens=FLAGS.max_new_tokens,
        repeats=FLAGS.repeats,
    )
    run_demo(models, make_console(), settings)


if __name__ == "__main__":
    app.run(main)
