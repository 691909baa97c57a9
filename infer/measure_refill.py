"""Requests of mixed lengths: rows that are refilled, beside fixed batches.

python infer/measure_refill.py --num_requests 1000
"""

from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models
from flexdraft_jax.evaluation.refill import measure_refill, mixed_requests

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_NUM_REQUESTS = flags.DEFINE_integer("num_requests", 1000, "How many.", lower_bound=1)
_LONGEST = flags.DEFINE_integer(
    "longest", 400, "New tokens of an answer: between 4 and this many.", lower_bound=4
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows decoded together.", lower_bound=1)
_SCHEDULE = flags.DEFINE_enum("schedule", "flex", SCHEDULES, "Of both.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Of both, in turn.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Measures both."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    console = make_console()
    with bad_input_exits():
        models = load_models(_TARGET.value, _DRAFT.value)
        report = measure_refill(
            models.target,
            models.draft,
            mixed_requests(models.tokenizer, _NUM_REQUESTS.value, longest=_LONGEST.value),
            batch_size=_BATCH_SIZE.value,
            schedule=_SCHEDULE.value,
            repeats=_REPEATS.value,
            progress=console.print,
        )
    console.print(report.to_table().to_rich())


if __name__ == "__main__":
    app.run(main)
