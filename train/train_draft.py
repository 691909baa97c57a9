"""Trains a drafter for a target model (Attention Tuning); started again, it resumes.

python train/train_draft.py --config configs/default_draft.py --target runs/target/export \
    --work_dir runs/draft --set train.learning_rate=5e-4
"""

from collections.abc import Sequence

from absl import app, flags, logging
from transformers import AutoTokenizer

from flexdraft_jax.checkpoints.hf import load_target
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.config_files import load_config
from flexdraft_jax.training.draft_loop import train_draft
from flexdraft_jax.training.preemption import TrainingStopped
from flexdraft_jax.training.watch import TrainingDiverged

_CONFIG = flags.DEFINE_string("config", "configs/default_draft.py", "Python file of the run.")
_TARGET = flags.DEFINE_string("target", "runs/target/export", "Directory of the target model.")
_WORK_DIR = flags.DEFINE_string("work_dir", "runs/draft", "Where checkpoints and results go.")
_SET = flags.DEFINE_multi_string("set", [], "Override, such as train.steps=100; repeatable.")


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every rename.
    try:
        config = load_config(_CONFIG.value, TrainDraftConfig, _SET.value)
        target = load_target(_TARGET.value)
        tokenizer = AutoTokenizer.from_pretrained(_TARGET.value)
        train_draft(config, target, tokenizer, _WORK_DIR.value)
    except (ValueError, OSError, TrainingDiverged) as error:
        raise SystemExit(f"train_draft: {error}") from error
    except TrainingStopped as stopped:
        print(f"train_draft: {stopped}")
        raise SystemExit(stopped.exit_code) from None
    print(f"saved to {_WORK_DIR.value}/export")


if __name__ == "__main__":
    app.run(main)
