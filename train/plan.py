"""Whether a drafter's training step fits on a TPU slice; no TPU, weights or data needed.

    python train/plan.py --config configs/qwen3_8b_v5e_256.py --target Qwen3-8B \
        --topology v5e:16x16 --mesh fsdp=256 --json plan.json

Compiles the real step for the slice, which takes minutes and libtpu (pip install
"flexdraft_jax[tpu_plan]"), and counts what it does. Memory and messages are what the compiler says;
times are predictions.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging

from flexdraft_jax.evaluation.highlight import make_console, progress_on
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs
from flexdraft_jax.planning.plans import TrainPlan, plan_train
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.config_files import load_config

_CONFIG = flags.DEFINE_string(
    "config", "configs/qwen3_8b_v5e_256.py", "Python file of the run; --mesh replaces its mesh."
)
_SET = flags.DEFINE_multi_string("set", [], "Override, such as anchors=128; repeatable.")
_TARGET = flags.DEFINE_string(
    "target", "Qwen3-8B", "Directory, config.json, or the name of a published one."
)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:16x16", "Slice: v5e:4x4, v5p:2x2x4, ...")
_MESH = flags.DEFINE_string("mesh", "fsdp=256", "All chips of the slice.")
_SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 2048, "Tokens of a packed row.")
_JSON = flags.DEFINE_string("json", None, "Write the plan to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the tables to this file.")


def main(argv: Sequence[str]) -> None:
    """Plans."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    jax.config.update("jax_platforms", "cpu")  # Shapes alone; and a TPU that is there stays free.
    console = make_console()
    progress = progress_on(console)
    with bad_input_exits():
        check_outputs(_JSON.value, _MARKDOWN.value)
        plan = TrainPlan(
            target=_TARGET.value,
            topology=_TOPOLOGY.value,
            mesh=_MESH.value,
            config=load_config(_CONFIG.value, TrainDraftConfig, _SET.value),
            sequence_length=_SEQUENCE_LENGTH.value,
        )
        report = plan_train(plan, progress)
    report.show(console, _JSON.value, _MARKDOWN.value)


if __name__ == "__main__":
    app.run(main)
