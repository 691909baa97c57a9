"""Writes the best drafter of a run in the published format, and proves it by decoding.

python train/export_draft.py --work_dir runs/draft --target path/to/target --data runs/data \
    --output path/to/draft
"""

from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.data.prepared import load_prepared
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models
from flexdraft_jax.training.export import export_draft

_WORK_DIR = flags.DEFINE_string("work_dir", "runs/draft", "Of the run.")
_TARGET = flags.DEFINE_string(
    "target", None, "Directory of the run's target; the embedded default if left out."
)
_DATA = flags.DEFINE_string("data", "runs/data", "Prepared data of the run, for its prompts.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the stored weights.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Longest answer of the proof.")


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every file.
    with bad_input_exits():
        models = load_models(_TARGET.value, None)
        report = export_draft(
            _WORK_DIR.value,
            models.target,
            models.tokenizer,
            load_prepared(_DATA.value),
            _OUTPUT.value,
            dtype=_DTYPE.value,
            max_new_tokens=_MAX_NEW_TOKENS.value,
        )
    make_console().print(report.table(_OUTPUT.value).to_rich())


if __name__ == "__main__":
    app.run(main)
