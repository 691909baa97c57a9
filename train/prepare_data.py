"""Turns conversations into packed rows for a target; started again, it goes on where it was.

python train/prepare_data.py --input conversations.jsonl --target path/to/target \
    --output runs/data --sequence_length 2048 --template_kwargs '{"enable_thinking": false}'
"""

from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.assets import default_directory
from flexdraft_jax.data.chat import parse_template_kwargs
from flexdraft_jax.data.prepare import PrepareConfig, prepare
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_tokenizer
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.parallel import processes
from flexdraft_jax.training.progress import track

_INPUT = flags.DEFINE_string("input", None, "JSONL file of conversations.", required=True)
_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory with a tokenizer; the embedded default if left out."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for rows and report.", required=True)
_SEQUENCE_LENGTH = flags.DEFINE_integer(
    "sequence_length", 2048, "Tokens of a packed row; longer documents are cut."
)
_HELD_OUT = flags.DEFINE_integer(
    "held_out", 64, "Different prompts to keep out of training, for measuring tau."
)
_TEMPLATE_KWARGS = flags.DEFINE_string(
    "template_kwargs", "{}", "Variables of the chat template, as a JSON object."
)
_POD = flags.DEFINE_bool("pod", False, "Join the other hosts of a TPU pod.")


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    with bad_input_exits():
        processes.initialize(pod=_POD.value)
        config = PrepareConfig(
            sequence_length=_SEQUENCE_LENGTH.value,
            held_out=_HELD_OUT.value,
            template_kwargs=parse_template_kwargs(_TEMPLATE_KWARGS.value),
        )
        tokenizer = load_tokenizer(_TARGET.value or default_directory() / "target")
        prepared = prepare(_INPUT.value, tokenizer, _OUTPUT.value, config, track)
    if not processes.is_main():
        return
    table = Table("Prepared", ("what", "count"), prepared.report.cells(), f"In {_OUTPUT.value}")
    make_console().print(table.to_rich())


if __name__ == "__main__":
    app.run(main)
