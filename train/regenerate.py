"""Has the target rewrite every response of a file; started again, it goes on where it was.

python train/regenerate.py --input conversations.jsonl --target path/to/target \
    --draft path/to/draft --output regenerated.jsonl --max_new_tokens 512
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging

from flexdraft_jax.data.chat import parse_template_kwargs
from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.parallel import processes
from flexdraft_jax.parallel.mesh import parse_mesh
from flexdraft_jax.training.regenerate import regenerate
from flexdraft_jax.training.rewriting import Writer

_INPUT = flags.DEFINE_string("input", None, "JSONL file of conversations.", required=True)
_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft, to be faster.")
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write.", required=True)
_MESH = flags.DEFINE_string(
    "mesh", None, "Spread the weights over a host's devices, as in data=2,tensor=4."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Rows decoded together.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 512, "Longest response, in tokens.")
_SCHEDULE = flags.DEFINE_enum(
    "schedule", "flex", list(SCHEDULES), "Only the speed depends on it; flex chooses step by step."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights.")
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
        mesh = None if _MESH.value is None else parse_mesh(_MESH.value).build(jax.local_devices())
        models = load_models(_TARGET.value, _DRAFT.value, dtype=_DTYPE.value, mesh=mesh)
        writer = Writer(
            target=models.target,
            draft=models.draft,
            tokenizer=models.tokenizer,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            batch_size=_BATCH_SIZE.value,
            template_kwargs=parse_template_kwargs(_TEMPLATE_KWARGS.value),
            schedule=_SCHEDULE.value,
        )
        report = regenerate(_INPUT.value, _OUTPUT.value, writer)
    if not processes.is_main():
        return
    table = Table("Regenerated", ("what", "count"), report.cells(), f"In {_OUTPUT.value}")
    make_console().print(table.to_rich())


if __name__ == "__main__":
    app.run(main)
