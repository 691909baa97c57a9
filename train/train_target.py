"""Trains a small target model from text; started again, it resumes.

python train/train_target.py --config configs/default_target.py --work_dir runs/target \
    --set train.learning_rate=3e-3
"""

from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.evaluation.loading import bad_input_exits
from flexdraft_jax.training.config import TrainTargetConfig
from flexdraft_jax.training.config_files import load_config
from flexdraft_jax.training.preemption import stopping_exits
from flexdraft_jax.training.target_loop import train_target

_CONFIG = flags.DEFINE_string("config", "configs/default_target.py", "Python file of the run.")
_WORK_DIR = flags.DEFINE_string("work_dir", "runs/target", "Where checkpoints and results go.")
_SET = flags.DEFINE_multi_string("set", [], "Override, such as train.steps=100; repeatable.")


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every rename.
    with bad_input_exits(), stopping_exits():
        config = load_config(_CONFIG.value, TrainTargetConfig, _SET.value)
        train_target(config, _WORK_DIR.value)
    print(f"saved to {_WORK_DIR.value}/export")


if __name__ == "__main__":
    app.run(main)
