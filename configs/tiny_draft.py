"""A drafter that trains in seconds, for the tiny target: tests and a first look at the tools.

    python train/make_conversations.py --count 64 --output runs/tiny.jsonl
    python train/prepare_data.py --input runs/tiny.jsonl --target runs/tiny_target/export \
        --output runs/tiny_data --sequence_length 512 --held_out 8
    python train/train_draft.py --config configs/tiny_draft.py \
        --target runs/tiny_target/export --data runs/tiny_data --work_dir runs/tiny_draft
"""

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.training.config import (
    DraftEvalConfig,
    LoopConfig,
    OptimizerConfig,
    TrainDraftConfig,
)


def get_config() -> TrainDraftConfig:
    """Returns the configuration."""
    return TrainDraftConfig(
        model=DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8),
        train=OptimizerConfig(steps=20, batch_size=4, learning_rate=3e-3),
        eval=DraftEvalConfig(prompts_per_domain=2, max_new_tokens=16),
        loop=LoopConfig(log_every=1, eval_every=0),
        anchors=8,
    )
