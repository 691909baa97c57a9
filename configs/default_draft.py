"""The drafter of the embedded default: Attention Tuning on the target's own responses.

    python train/train_draft.py --config configs/default_draft.py --target runs/target/export \
        --work_dir runs/draft
"""

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.training.config import (
    LoopConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainDraftConfig,
)


def get_config() -> TrainDraftConfig:
    """Returns the configuration."""
    return TrainDraftConfig(
        model=DraftConfig(num_draft_layers=4, block_size=8, calibration_rank=64),
        data=RolloutConfig(rollouts=2048, max_new_tokens=256),
        train=OptimizerConfig(
            steps=1100,
            batch_size=8,
            learning_rate=4e-3,
            schedule="wsd",
            decay_fraction=0.4,
            optimizer="muon",
        ),
        loop=LoopConfig(eval_every=550),
    )
