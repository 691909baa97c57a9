"""Trains a drafter for a target model (Attention Tuning); started again, it resumes.

    python train/train_draft.py --config configs/default_draft.py --target path/to/target \
        --data runs/data --work_dir runs/draft --set train.learning_rate=5e-4

On a TPU pod, the same command with --pod on every host, and a work_dir that all of them see. On
other machines, with JAX_COORDINATOR_ADDRESS=host:port of the first one, JAX_NUM_PROCESSES and
JAX_PROCESS_ID set.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging

from flexdraft_jax.data.prepared import load_prepared
from flexdraft_jax.evaluation.loading import bad_input_exits, load_models
from flexdraft_jax.parallel import processes
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.config_files import load_config
from flexdraft_jax.training.draft_loop import train_draft
from flexdraft_jax.training.preemption import stopping_exits

_CONFIG = flags.DEFINE_string("config", "configs/default_draft.py", "Python file of the run.")
_TARGET = flags.DEFINE_string(
    "target", None, "Directory of the target; the embedded default if left out."
)
_DATA = flags.DEFINE_string("data", "runs/data", "Output of train/prepare_data.py.")
_WORK_DIR = flags.DEFINE_string("work_dir", "runs/draft", "Where checkpoints and results go.")
_SET = flags.DEFINE_multi_string("set", [], "Override, such as train.steps=100; repeatable.")
_POD = flags.DEFINE_bool("pod", False, "Join the other hosts of a TPU pod.")


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every rename.
    with bad_input_exits(), stopping_exits():
        processes.initialize(pod=_POD.value)
        config = load_config(_CONFIG.value, TrainDraftConfig, _SET.value)
        # On a mesh, by way of the host: the target may be too large for one device.
        where = None if config.mesh.build().size == 1 else jax.local_devices(backend="cpu")[0]
        with jax.default_device(where):
            models = load_models(_TARGET.value, dtype=config.step.compute_dtype)
        prepared = load_prepared(_DATA.value)
        train_draft(config, models.target, models.tokenizer, prepared, _WORK_DIR.value)
    if processes.is_main():
        print(f"trained; now: python train/export_draft.py --work_dir {_WORK_DIR.value} ...")


if __name__ == "__main__":
    app.run(main)
