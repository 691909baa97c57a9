"""FlexDraft in JAX: lossless self-speculative decoding (arXiv 2605.20022)."""

from flexdraft_jax.assets import load_default
from flexdraft_jax.checkpoints.draft import load_draft, save_draft
from flexdraft_jax.checkpoints.hf import load_target, save_target
from flexdraft_jax.config import DraftConfig, RopeScaling, TargetConfig
from flexdraft_jax.decoding.generate import GenerateOutput, generate, stream
from flexdraft_jax.models.draft import Draft, init_draft
from flexdraft_jax.models.target import Target, init_target

__all__ = [
    "Draft",
    "DraftConfig",
    "GenerateOutput",
    "RopeScaling",
    "Target",
    "TargetConfig",
    "generate",
    "init_draft",
    "init_target",
    "load_default",
    "load_draft",
    "load_target",
    "save_draft",
    "save_target",
    "stream",
]
