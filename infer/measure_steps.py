"""Measures what decoding steps cost on this machine, for the flex schedule to choose by.

    python infer/measure_steps.py
    python infer/measure_steps.py --target DIR --draft DIR --dtype bfloat16 --batch_sizes 1,8,64
    python infer/measure_steps.py --target DIR --draft DIR --mesh tensor=8
    python infer/measure_steps.py --trace DIR --batch_sizes 1,8

Decoding finds the file by itself, under ~/.cache/flexdraft_jax or $FLEXDRAFT_JAX_PROFILES. Without
one it works with rough estimates. Sizes that were measured before and are not measured again stay
in the file. --trace shows where the time of a step goes, and writes nothing but that.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.decoding.costs import Profile, load_profile, profile_path, save_profile
from flexdraft_jax.evaluation.benchmark import describe_size
from flexdraft_jax.evaluation.highlight import make_console, progress_on
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, integers, load_models
from flexdraft_jax.evaluation.random_targets import RANDOM_TARGETS, random_models
from flexdraft_jax.evaluation.step_costs import costs_table, measure_costs
from flexdraft_jax.parallel.mesh import parse_mesh
from flexdraft_jax.planning.step_trace import trace_tables

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights in memory.")
_MESH = flags.DEFINE_string(
    "mesh", None, "Spread the weights over devices, as in data=2,tensor=4; one device if left out."
)
_RANDOM_TARGET = flags.DEFINE_enum(
    "random_target",
    None,
    list(RANDOM_TARGETS),
    "Measure a target of this size with random weights.",
)
flags.mark_flags_as_mutual_exclusive(["random_target", "target"])
flags.mark_flags_as_mutual_exclusive(["random_target", "draft"])
_BLOCK_SIZES = flags.DEFINE_list("block_sizes", [], "n; the draft's own if left out.")
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes",
    ["1", "2", "4", "8", "16", "32"],
    "Rows decoded together, on all devices of a mesh.",
)
_NUM_SLOTS = flags.DEFINE_list("num_slots", ["256"], "Sizes of the cache.")
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps",
    None,
    "Steps in one timed call; 8 to 64, as many as take 0.1 s, if left out.",
    lower_bound=1,
)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Of every measurement, interleaved.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Write this file instead of the one that decoding finds by itself."
)
_TRACE = flags.DEFINE_string(
    "trace",
    None,
    "Measure no costs; write profiles of the schedules' steps into this folder, and show what the "
    "parts of a step take, and how well they use the device.",
)
flags.mark_flags_as_mutual_exclusive(["trace", "output"])
flags.mark_flags_as_mutual_exclusive(["trace", "mesh"])  # What it counts is of one device.


def main(argv: Sequence[str]) -> None:
    """Measures and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    console = make_console()
    progress = progress_on(console)
    with bad_input_exits():
        check_outputs(_OUTPUT.value)
        if _TRACE.value and pathlib.Path(_TRACE.value).is_file():
            raise ValueError(f"--trace={_TRACE.value}: must be a folder, and is a file")
        block_sizes = _BLOCK_SIZES.value and integers("block_sizes", _BLOCK_SIZES.value, smallest=2)
        batch_sizes = integers("batch_sizes", _BATCH_SIZES.value)
        slot_counts = integers("num_slots", _NUM_SLOTS.value)
        mesh = None if _MESH.value is None else parse_mesh(_MESH.value).build()
        if _RANDOM_TARGET.value:
            name = f"random weights {_RANDOM_TARGET.value}"
            n = block_sizes[0] if block_sizes else 8
            target, draft = random_models(_RANDOM_TARGET.value, n, _DTYPE.value, mesh)
        else:
            models = load_models(_TARGET.value, _DRAFT.value, dtype=_DTYPE.value, mesh=mesh)
            if models.draft is None:
                raise ValueError("--target without --draft: drafting is what is to be measured")
            name, target, draft = models.name, models.target, models.draft
        if _TRACE.value:
            for table in trace_tables(
                target,
                draft,
                _TRACE.value,
                block_sizes=block_sizes or [draft.config.block_size],
                batch_sizes=batch_sizes,
                slot_counts=slot_counts,
                num_steps=_NUM_STEPS.value,
                repeats=_REPEATS.value,
                progress=progress,
            ):
                console.print(table.to_rich())
            return
        path = pathlib.Path(
            _OUTPUT.value or profile_path(target.config, draft.config, target.dtype, mesh)
        )
        profile = Profile(())
        if path.exists():
            try:
                profile = load_profile(path)
            except ValueError as error:
                progress(f"written anew: {error}")
        costs = []
        for one in measure_costs(
            target,
            draft,
            block_sizes=block_sizes or [draft.config.block_size],
            batch_sizes=batch_sizes,
            slot_counts=slot_counts,
            num_steps=_NUM_STEPS.value,
            repeats=_REPEATS.value,
            progress=progress,
        ):
            costs.append(one)
            profile = profile.updated([one])
            save_profile(profile, path)  # What is measured stays, whatever happens to the rest.
    title = f"Cost of the parts of a step: {name}, {describe_size(target, draft)}"
    for block_size in sorted({c.block_size for c in costs}):
        lines = [c for c in costs if c.block_size == block_size]
        console.print(costs_table(lines, title).to_rich())
    console.print(f"Written to {path}", markup=False)


if __name__ == "__main__":
    app.run(main)
