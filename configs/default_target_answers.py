"""The second leg of the embedded default's target: answers only, word problems and arithmetic.

    python train/train_target.py --config configs/default_target_answers.py \
        --work_dir runs/target_answers --set init_from=runs/target/export
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
        data=CorpusConfig(word_problem_share=0.95, drill_share=0.4, train_tokens=4_000_000, seed=2),
        train=OptimizerConfig(
            steps=480,
            batch_size=8,
            learning_rate=4e-3,
            warmup_fraction=0.05,
            schedule="wsd",
            decay_fraction=0.5,
            optimizer="muon",
            weight_decay=0.1,
        ),
        loop=LoopConfig(eval_every=80),
        loss_on="responses",
        init_from="runs/target/export",
    )
