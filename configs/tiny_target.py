"""A target that trains in seconds and is good for nothing: tests and a first look at the tools.

python train/train_target.py --config configs/tiny_target.py --work_dir runs/tiny_target
"""

from flexdraft_jax.training.config import (
    CorpusConfig,
    LoopConfig,
    OptimizerConfig,
    TargetModelConfig,
    TrainTargetConfig,
)


def get_config() -> TrainTargetConfig:
    """Returns the configuration."""
    return TrainTargetConfig(
        model=TargetModelConfig(
            num_layers=2,
            hidden_size=32,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            intermediate_size=48,
        ),
        data=CorpusConfig(sequence_length=64, train_tokens=8192, held_out_tokens=512),
        train=OptimizerConfig(steps=20, batch_size=4, learning_rate=1e-2, weight_decay=0.1),
        loop=LoopConfig(log_every=1, eval_every=10),
    )
