"""FlexDraft in JAX: lossless self-speculative decoding (arXiv 2605.20022)."""

from flexdraft_jax.assets import load_default
from flexdraft_jax.checkpoints.draft import load_draft, save_draft
from flexdraft_jax.checkpoints.hf import load_target, save_target
from flexdraft_jax.config import DraftConfig, RopeScaling, TargetConfig
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.generate import generate, stream
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.rounds import Answer, Update
from flexdraft_jax.decoding.rows import GenerateOutput
from flexdraft_jax.models.draft import Draft, init_draft, spread_draft
from flexdraft_jax.models.target import Target, init_target, spread_target
from flexdraft_jax.parallel.mesh import make_mesh, parse_mesh
from flexdraft_jax.parallel.processes import initialize

__all__ = [
    "Answer",
    "DecodeEngine",
    "Draft",
    "DraftConfig",
    "GenerateOutput",
    "Request",
    "RopeScaling",
    "Target",
    "TargetConfig",
    "Update",
    "generate",
    "init_draft",
    "init_target",
    "initialize",
    "load_default",
    "load_draft",
    "load_target",
    "make_mesh",
    "parse_mesh",
    "save_draft",
    "save_target",
    "spread_draft",
    "spread_target",
    "stream",
]
