"""Whether decoding fits on a TPU slice, and how fast it may be; no TPU and no weights needed.

    python infer/plan.py --target Qwen3-8B --topology v5e:2x4 --mesh tensor=8 --batch 32
    python infer/plan.py --target path/to/target --draft path/to/draft --topology v6e:2x4 \
        --mesh data=2,tensor=4 --batch 32 --max_len 2048 --json plan.json --plot plan.png

Compiles the real programs for the slice, which takes minutes and libtpu (pip install
"flexdraft_jax[tpu_plan]"), and counts what they do. Memory and messages are what the compiler says;
times are predictions.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging

from flexdraft_jax.evaluation.highlight import make_console, progress_on
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, check_plot
from flexdraft_jax.planning.plans import DecodePlan, plan_decode
from flexdraft_jax.planning.report import plot_decode_plan
from flexdraft_jax.planning.topology import parse_slice

_TARGET = flags.DEFINE_string(
    "target", "Qwen3-8B", "Directory, config.json, or the name of a published one."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the draft, for its shape alone.")
_DRAFT_LAYERS = flags.DEFINE_integer("draft_layers", 5, "D, without --draft.")
_CALIBRATION_RANK = flags.DEFINE_integer("calibration_rank", 1024, "r, without --draft.")
_BLOCK_SIZE = flags.DEFINE_integer("block_size", None, "n; the draft's own if left out, or 16.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "Slice: v5e:2x4, v5p:2x2x1, v6e:4x4, ...")
_MESH = flags.DEFINE_string("mesh", "tensor=8", "Such as data=2,tensor=4: all chips of the slice.")
_BATCH = flags.DEFINE_integer("batch", 32, "Rows decoded together, on all chips.", lower_bound=1)
_MAX_LEN = flags.DEFINE_integer(
    "max_len", 2048, "Slots of the cache: prompt, answer and a block.", lower_bound=64
)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of weights and cache.")
_ALL = flags.DEFINE_bool("all_parallel", False, "Compile parallel steps of all numbers of groups.")
_PROGRAMS = flags.DEFINE_list(
    "programs", [], "Compile these and ar alone, such as sequential,flex."
)
_JSON = flags.DEFINE_string("json", None, "Write the plan to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the tables to this file.")
_PLOT = flags.DEFINE_string("plot", None, "Draw the plan into this file.")


def main(argv: Sequence[str]) -> None:
    """Plans."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    jax.config.update("jax_platforms", "cpu")  # Shapes alone; and a TPU that is there stays free.
    console = make_console()
    progress = progress_on(console)
    with bad_input_exits():
        check_outputs(_JSON.value, _MARKDOWN.value, _PLOT.value)
        check_plot(_PLOT.value)
        plan = DecodePlan(
            target=_TARGET.value,
            draft=_DRAFT.value,
            draft_layers=_DRAFT_LAYERS.value,
            calibration_rank=_CALIBRATION_RANK.value,
            block_size=_BLOCK_SIZE.value,
            topology=_TOPOLOGY.value,
            mesh=_MESH.value,
            batch_size=_BATCH.value,
            num_slots=_MAX_LEN.value,
            dtype=_DTYPE.value,
        )
        report, case = plan_decode(plan, _PROGRAMS.value, _ALL.value, progress)
    report.show(console, _JSON.value, _MARKDOWN.value)
    if _PLOT.value:
        plot_decode_plan(report, case, parse_slice(_TOPOLOGY.value).generation, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
