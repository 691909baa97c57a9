"""Configuration of the two training programs: a small target, and a drafter for a target.

Each program is described by one frozen tree of dataclasses. A configuration file (see
:mod:`flexdraft_jax.training.config_files`) builds such a tree, and any field can be overridden on
the command line. The comment at a field says what happens when it changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from flexdraft_jax.config import COUNT, INT32_MAX, DraftConfig, TargetConfig, check_fields
from flexdraft_jax.parallel.mesh import MeshConfig

# Bounds of numbers.
_FROM_ZERO, _SHARE = (0, math.inf), (0, 1)
_SEED = (0, 2**32 - 1)


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move: the loop's length, its batch, and the optimizer's settings."""

    steps: int  # Optimizer steps of the whole run; the schedule reaches its end at the last one.
    batch_size: int  # Packed rows per step; memory and time of a step grow in proportion.
    learning_rate: float  # Peak rate. Too high diverges within the warm-up; too low wastes steps.
    warmup_fraction: float = 0.05  # Share of the steps with a linearly rising rate.
    schedule: Literal["cosine", "wsd"] = "cosine"  # "wsd" holds the peak, then falls linearly.
    decay_fraction: float = 0.3  # "wsd" only: share of the steps spent falling to zero.
    optimizer: Literal["adamw", "muon"] = "adamw"  # "muon" orthogonalises updates of matrices.
    b1: float = 0.9  # Decay of the mean of gradients.
    b2: float = 0.95  # Decay of the mean of squares; .999 forgets too slowly for short runs.
    weight_decay: float = 0.0  # Decoupled, on matrices only; 0 for drafters, 0.1 for targets.
    clip_norm: float = 1.0  # Gradients of a larger global norm are scaled down to it.

    def __post_init__(self) -> None:
        check_fields(
            self,
            "train.",
            **dict.fromkeys(("steps", "batch_size"), COUNT),
            **dict.fromkeys(("learning_rate", "clip_norm", "weight_decay"), _FROM_ZERO),
            **dict.fromkeys(("b1", "b2", "warmup_fraction", "decay_fraction"), _SHARE),
        )


@dataclass(frozen=True)
class LoopConfig:
    """When the loop stops to report, evaluate and save."""

    log_every: int = 10  # Steps between two points of the metrics file; reading is not blocking.
    eval_every: int = 250  # Steps between two evaluations; 0 evaluates only at the end.
    checkpoint_seconds: float = 180.0  # Work lost by a crash at most; saving runs in background.
    keep_checkpoints: int = 2  # Older ones are deleted.

    def __post_init__(self) -> None:
        check_fields(
            self,
            "loop.",
            log_every=COUNT,
            keep_checkpoints=COUNT,
            eval_every=(0, INT32_MAX),
            checkpoint_seconds=_FROM_ZERO,
        )


@dataclass(frozen=True)
class TargetModelConfig:
    """Shape of the small Qwen3-family target to train; the tokenizer gives the vocabulary."""

    num_layers: int = 8  # L
    hidden_size: int = 256  # E
    num_heads: int = 4  # N
    num_kv_heads: int = 2  # K; must divide num_heads
    head_dim: int = 64  # H; N * H need not equal E
    intermediate_size: int = 640  # F
    rope_theta: float = 10_000.0  # Small bases suit short contexts.
    tie_word_embeddings: bool = True  # One table for embedding and head.
    max_position_embeddings: int = 2048  # Written to config.json; longer prompts are refused.

    def __post_init__(self) -> None:
        check_fields(self, "model.")  # Sizes are for `TargetConfig` to check.

    def build(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> TargetConfig:
        """The model's configuration for a vocabulary of `vocab_size` tokens."""
        return TargetConfig(
            model_type="qwen3",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rms_norm_eps=1e-6,
            rope_theta=self.rope_theta,
            rope_scaling=None,
            tie_word_embeddings=self.tie_word_embeddings,
            qkv_bias=False,
            o_bias=False,
            mlp_bias=False,
            qk_norm=True,
            layer_windows=(None,) * self.num_layers,
            max_position_embeddings=self.max_position_embeddings,
            eos_token_ids=eos_token_ids,
        )


@dataclass(frozen=True)
class CorpusConfig:
    """The text a target is trained on: generated word problems and library source code."""

    sequence_length: int = 512  # Tokens of a packed row; longer documents are cut.
    train_tokens: int = 12_000_000  # Text to prepare; a run that needs more repeats it.
    held_out_tokens: int = 16_384  # Text per domain for the held-out loss; more takes longer.
    word_problem_share: float = 0.5  # Share of word problems by bytes; the rest is code.
    drill_share: float = 0.0  # Share of arithmetic drills, which both domains make room for.
    seed: int = 0  # Another seed gives other word problems and another order of code.

    def __post_init__(self) -> None:
        check_fields(
            self,
            "data.",
            sequence_length=(8, INT32_MAX),
            train_tokens=COUNT,
            held_out_tokens=COUNT,
            word_problem_share=_SHARE,
            drill_share=_SHARE,
            seed=_SEED,
        )


@dataclass(frozen=True)
class TrainTargetConfig:
    """Everything :func:`flexdraft_jax.training.target_loop.train_target` needs."""

    model: TargetModelConfig
    data: CorpusConfig
    train: OptimizerConfig
    loop: LoopConfig = field(default_factory=LoopConfig)
    # "all" learns to write prompts too; "responses" spends everything on answers, which counts
    # when what is left of the loss is mostly the free choice of the next prompt.
    loss_on: Literal["all", "responses"] = "all"
    init_from: str = ""  # Directory of a target to start from (weights only); "" starts at random.
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # Of the weights in export/.
    seed: int = 0  # Initialisation and order of the rows.

    def __post_init__(self) -> None:
        check_fields(self, seed=_SEED)


@dataclass(frozen=True)
class ObjectiveTerms:
    """How much each divergence counts in a slot's loss; any mixture, 0 leaves a term out.

    Say `0.1 * cross_entropy + 0.9 * total_variation` to finish a drafter for temperature > 0. The
    functions of these names are in :mod:`flexdraft_jax.training.objectives`.
    """

    cross_entropy: float = 0.0  # Pulls to the label alone; all that is left of KL for sure labels.
    forward_kl: float = 1.0  # Pulls to the target's whole distribution, covering all of it.
    total_variation: float = 0.0  # One minus the chance of acceptance; hardly pulls from afar.
    negative_log_acceptance: float = 0.0  # The same goal with a pull that lasts from afar.
    lk_hybrid: float = 0.0  # From forward KL to total variation, slot by slot, as drafts improve.

    def __post_init__(self) -> None:
        check_fields(self, "objective.terms.", **dict.fromkeys(vars(self), _FROM_ZERO))


@dataclass(frozen=True)
class ObjectiveConfig:
    """The drafter's loss: a mixture of divergences per slot, times a weight per slot."""

    terms: ObjectiveTerms = field(default_factory=ObjectiveTerms)
    # What a slot counts beside the others; "uniform" is all alike.
    slot_weights: Literal["running_acceptance", "exponential", "uniform"] = "running_acceptance"
    gamma: float = 4.0  # "exponential": slot j counts exp(-(j-1)/gamma).
    alpha: float = 0.5  # "running_acceptance": share of a draft's acceptance taken for granted.
    eta: float = 3.0  # "lk_hybrid": larger turns to total variation at a lower acceptance.

    def __post_init__(self) -> None:
        check_fields(self, "objective.", gamma=(1e-3, math.inf), alpha=_SHARE, eta=_FROM_ZERO)


@dataclass(frozen=True)
class DraftStepConfig:
    """How a step is computed: none of it changes what is computed, beyond rounding."""

    # Of hidden states, gradients of one chunk and the target; parameters and the optimizer's
    # state are float32 always. "bfloat16" halves memory and is what accelerators multiply fast.
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    microbatches: int = 1  # Parts that the rows are worked off in; more take less memory.
    chunk: int = 0  # Mask groups of each row worked off at a time, 0 all: bounds logits' memory.
    remat: bool = False  # Recompute draft layers in the backward pass; allows a larger chunk.
    # Of clean tokens among each other, which needs no gradient. "pallas" is a kernel for TPUs or
    # NVIDIA GPUs that keeps no scores in memory and skips what a token does not see; it is untimed.
    attention: Literal["reference", "pallas"] = "reference"

    def __post_init__(self) -> None:
        check_fields(self, "step.", microbatches=COUNT, chunk=(0, INT32_MAX))

    def check(self, batch_size: int, anchors: int) -> None:
        """Raises ValueError where rows or groups do not fall into equal parts."""
        if batch_size % self.microbatches:
            raise ValueError(
                f"step.microbatches={self.microbatches}: must divide batch_size={batch_size}"
            )
        if self.chunk and anchors % self.chunk:
            raise ValueError(f"step.chunk={self.chunk}: must divide anchors={anchors}, or be 0")


@dataclass(frozen=True)
class DraftEvalConfig:
    """Real decoding on held-out prompts: the only number that says whether a drafter works."""

    prompts_per_domain: int = 16  # At most; more give a steadier tau and take longer.
    max_new_tokens: int = 256  # Longest held-out response.

    def __post_init__(self) -> None:
        check_fields(self, "eval.", prompts_per_domain=COUNT, max_new_tokens=COUNT)


@dataclass(frozen=True)
class TrainDraftConfig:
    """Everything :func:`flexdraft_jax.training.draft_loop.train_draft` needs, but for the data."""

    model: DraftConfig
    train: OptimizerConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    step: DraftStepConfig = field(default_factory=DraftStepConfig)
    eval: DraftEvalConfig = field(default_factory=DraftEvalConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    # Directory of a drafter to start from, weights only (a warm start, not a resume); "" starts
    # from the target's own projections.
    init_from: str = ""
    anchors: int = 64  # Mask groups per packed row; the step's cost grows with anchors * n.
    seed: int = 0  # Initialisation, anchors and order of the rows.

    def __post_init__(self) -> None:
        check_fields(self, anchors=COUNT, seed=_SEED)
