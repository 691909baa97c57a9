"""Predictions for several targets and slices; takes hours, may be stopped, and goes on.

    python infer/plan_table.py --programs plan_table.json --markdown plan_table.md

Stopped, it says what is missing; with --compile_at_most 0 it makes the tables of what is there.
"""

import pathlib
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from flexdraft_jax.evaluation.highlight import make_console, progress_on
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs
from flexdraft_jax.planning.plans import Kept
from flexdraft_jax.planning.table import decode_table, train_table

_PROGRAMS = flags.DEFINE_string(
    "programs", "plan_table.json", "Compiled programs are kept in this file."
)
_COMPILE_AT_MOST = flags.DEFINE_integer(
    "compile_at_most",
    None,
    "Stop behind so many programs; started again, it goes on.",
    lower_bound=0,
)
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the tables to this file.")


def main(argv: Sequence[str]) -> None:
    """Makes both tables, of what is there."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    jax.config.update("jax_platforms", "cpu")
    console = make_console()
    progress = progress_on(console)
    with bad_input_exits():
        check_outputs(_PROGRAMS.value, _MARKDOWN.value)
        kept = Kept(_PROGRAMS.value, _COMPILE_AT_MOST.value)
        tables = [make(kept, progress) for make in (decode_table, train_table)]
    for table in tables:
        console.print(table.to_rich())
    if _MARKDOWN.value:
        pathlib.Path(_MARKDOWN.value).write_text("\n".join(t.to_markdown() for t in tables))
    if kept.next:
        raise SystemExit(f"to be continued: {kept.next} is the next")


if __name__ == "__main__":
    app.run(main)
