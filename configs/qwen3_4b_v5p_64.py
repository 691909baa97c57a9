"""A drafter for Qwen3-4B on a TPU v5p-64 slice (32 chips), for serving at n = 16.

    python train/regenerate.py --input conversations.jsonl --target path/to/target \
        --output regenerated.jsonl --dtype bfloat16 --max_new_tokens 2048 --batch_size 16 \
        --template_kwargs '{"enable_thinking": false}'
    python train/prepare_data.py --input regenerated.jsonl --target path/to/target \
        --output data --sequence_length 3072 --held_out 256 \
        --template_kwargs '{"enable_thinking": false}'
    python train/train_draft.py --pod --config configs/qwen3_4b_v5p_64.py --target path/to/target \
        --data data --work_dir /shared/qwen3_4b_draft

The first two commands need no slice: the first shares the lines among hosts, each of which may
spread the target over its own devices (`--mesh tensor=4`); the second runs on any machine. The
third runs on every host, with paths on a file system that all of them see. Then
`train/export_draft.py` writes the best drafter out, on one host with `JAX_PLATFORMS=cpu`.

Samples: 400,000 conversations of about 1,500 tokens, in 200,000 rows of 3,072 tokens; 4 epochs are
12,500 steps of 64 rows. Time: a step takes 3.1 PFLOP by `training/flops.py`; 32 chips of 459
TFLOP/s at an assumed 35 % utilisation need 0.6 s, so about 2.1 hours plus evaluation and
compilation. Nothing of this was run on such a slice: the arithmetic is counted, the utilisation is
a guess.
"""

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.training.config import (
    DraftEvalConfig,
    DraftStepConfig,
    LoopConfig,
    MeshConfig,
    OptimizerConfig,
    TrainDraftConfig,
)


def get_config() -> TrainDraftConfig:
    """Returns the configuration."""
    return TrainDraftConfig(
        model=DraftConfig(num_draft_layers=5, block_size=16, calibration_rank=1024),
        train=OptimizerConfig(steps=12_500, batch_size=64, learning_rate=5e-4),
        step=DraftStepConfig(compute_dtype="bfloat16", chunk=64),
        eval=DraftEvalConfig(prompts_per_domain=64, max_new_tokens=512),
        loop=LoopConfig(eval_every=1250, checkpoint_seconds=600),
        mesh=MeshConfig(fsdp=32),
        anchors=256,
    )
