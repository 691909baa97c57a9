"""A drafter for Qwen3-0.6B on one free accelerator: a T4, or one TPU core.

    python train/regenerate.py --input conversations.jsonl --target path/to/target \
        --output runs/written.jsonl --max_new_tokens 512 --batch_size 16 \
        --template_kwargs '{"enable_thinking": false}'
    python train/prepare_data.py --input runs/written.jsonl --target path/to/target \
        --output runs/data --sequence_length 1024 --held_out 32 \
        --template_kwargs '{"enable_thinking": false}'
    python train/train_draft.py --config configs/qwen3_0p6b_colab.py --target path/to/target \
        --data runs/data --work_dir runs/draft
    python train/export_draft.py --work_dir runs/draft --target path/to/target --data runs/data \
        --output path/to/draft
    python infer/generate.py --target path/to/target --draft path/to/draft --compare \
        --template_kwargs '{"enable_thinking": false}' --prompt "..."

Samples: 4,000 conversations of about 700 tokens, in 2,800 rows of 1,024 tokens; 2 epochs are 1,400
steps of 4 rows. Time: a step takes 6.9 TFLOP by `training/flops.py`. A TPU v5e core (197 TFLOP/s)
at an assumed 35 % utilisation needs 0.1 s, so the run a few minutes; a T4 has no bfloat16 units, so
take float32 there (`--set step.compute_dtype=float32`), some 8 TFLOP/s: 2 s a step at 45 %, about
50 minutes. Writing the responses comes on top. Nothing of this was run on either: the arithmetic
is counted, the utilisation is a guess.
"""

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.training.config import (
    DraftEvalConfig,
    DraftStepConfig,
    LoopConfig,
    OptimizerConfig,
    TrainDraftConfig,
)


def get_config() -> TrainDraftConfig:
    """Returns the configuration."""
    return TrainDraftConfig(
        model=DraftConfig(num_draft_layers=4, block_size=8, calibration_rank=256),
        train=OptimizerConfig(steps=1400, batch_size=4, learning_rate=6e-4),
        step=DraftStepConfig(compute_dtype="bfloat16", microbatches=2, chunk=16),
        eval=DraftEvalConfig(prompts_per_domain=16, max_new_tokens=256),
        loop=LoopConfig(eval_every=350, checkpoint_seconds=300),
        anchors=64,
    )
