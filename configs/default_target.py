"""The target of the embedded default: 5.6 M parameters, word problems and library code.

python train/train_target.py --config configs/default_target.py --work_dir runs/target
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
        model=TargetModelConfig(),
        data=CorpusConfig(),
        train=OptimizerConfig(
            steps=850,
            batch_size=8,
            learning_rate=8e-3,
            warmup_fraction=0.0765,
            schedule="wsd",
            decay_fraction=0.4,
            optimizer="muon",
            weight_decay=0.1,
        ),
        loop=LoopConfig(eval_every=100),
    )
