"""The drafter of the embedded default: Attention Tuning on the target's own responses.

    python train/make_conversations.py --count 2048 --seed 1 --output runs/prompts.jsonl
    python train/regenerate.py --input runs/prompts.jsonl --output runs/conversations.jsonl \
        --target runs/target_answers/export --max_new_tokens 256
    python train/prepare_data.py --input runs/conversations.jsonl --output runs/data \
        --target runs/target_answers/export --sequence_length 512
    python train/train_draft.py --config configs/default_draft.py --data runs/data \
        --target runs/target_answers/export --work_dir runs/draft
    python train/export_draft.py --work_dir runs/draft --data runs/data \
        --target runs/target_answers/export --output runs/draft/export

Without --target they take the embedded one. `train/study.py` compares this recipe with others.
"""

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.training.config import (
    LoopConfig,
    OptimizerConfig,
    TrainDraftConfig,
)


def get_config() -> TrainDraftConfig:
    """Returns the configuration."""
    return TrainDraftConfig(
        model=DraftConfig(num_draft_layers=4, block_size=8, calibration_rank=64),
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
