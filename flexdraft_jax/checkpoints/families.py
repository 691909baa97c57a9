"""What the families of models leave unsaid in their `config.json`: defaults, biases, windows."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` reads its config. Defaults are those of the Hugging Face class.

    Attributes:
        architecture: the class that `config.json` names.
        qk_norm: queries and keys are normalised per head.
        attention_bias: biases of the attention projections: "never", "qkv" (always on q, k and v)
            or "field" (`attention_bias` says, for q, k, v and o).
        mlp_bias: the family reads `mlp_bias`.
        windows: layers with a sliding window: "never", "all" (`sliding_window` counts for every
            layer), "flag" (the same, if `use_sliding_window`), "layers" (`layer_types`, or
            `use_sliding_window` and `max_window_layers`) or "pattern" (`layer_types`, or all but
            every `sliding_window_pattern`th).
        head_dim: where the field is absent; None is hidden_size / num_attention_heads.
        num_kv_heads: where the field is absent; None is num_attention_heads.
        max_position_embeddings: where the field is absent.
        eos_token_ids: where the field is absent.
        rms_norm_eps: where the field is absent.
        sliding_window: where the field is absent.
        rope_types: that its class takes.
        partial_rotary: the family reads `partial_rotary_factor`.
        rope_theta: where the field is absent.
        local_rope_theta: of layers with a window, where the field is absent; None for families that
            have the same RoPE in all layers.
        tie_word_embeddings: where the field is absent.
        experts: every layer has a mixture of experts in the place of its MLP.
        gemma: what all models of that name do: GELU, norms around one and behind attention and MLP,
            scaled embeddings, and `query_pre_attn_scalar`, 256 where it is absent.
    """

    architecture: str
    qk_norm: bool
    attention_bias: Literal["never", "qkv", "field"]
    mlp_bias: bool
    windows: Literal["never", "all", "flag", "layers", "pattern"]
    head_dim: int | None
    num_kv_heads: int | None
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = 4_096
    rope_types: tuple[str, ...] = ("default", "linear", "llama3")
    partial_rotary: bool = False
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    tie_word_embeddings: bool = False
    experts: bool = False
    gemma: bool = False


FAMILIES = {
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        qk_norm=True,
        attention_bias="field",
        mlp_bias=False,
        windows="layers",
        head_dim=128,
        num_kv_heads=32,
        max_position_embeddings=32_768,
        eos_token_ids=(),
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        qk_norm=True,
        attention_bias="field",
        mlp_bias=False,
        windows="flag",
        head_dim=None,
        num_kv_heads=4,
        max_position_embeddings=32_768,
        eos_token_ids=(),
        experts=True,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        qk_norm=False,
        attention_bias="qkv",
        mlp_bias=False,
        windows="layers",
        head_dim=None,
        num_kv_heads=32,
        max_position_embeddings=32_768,
        eos_token_ids=(),
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        qk_norm=False,
        attention_bias="field",
        mlp_bias=True,
        windows="never",
        head_dim=None,
        num_kv_heads=None,
        max_position_embeddings=2_048,
        eos_token_ids=(2,),
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        qk_norm=False,
        attention_bias="never",
        mlp_bias=False,
        windows="all",
        head_dim=None,
        num_kv_heads=8,
        max_position_embeddings=131_072,
        eos_token_ids=(2,),
    ),
    # Phi-3, and Phi-4 of 14 B. The small ones scale RoPE by the length of the whole batch
    # ("longrope"), so that a row's tokens depend on its neighbours; that is refused.
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        qk_norm=False,
        attention_bias="never",
        mlp_bias=False,
        windows="all",
        head_dim=None,
        num_kv_heads=None,
        max_position_embeddings=4_096,
        eos_token_ids=(32_000,),
        rms_norm_eps=1e-5,
        sliding_window=None,
        rope_types=("default",),
        partial_rotary=True,
    ),
    # Models of text alone; those that read images too ("gemma3") are refused.
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        qk_norm=True,
        attention_bias="field",
        mlp_bias=False,
        windows="pattern",
        head_dim=256,
        num_kv_heads=4,
        max_position_embeddings=131_072,
        eos_token_ids=(1,),
        rope_theta=1e6,
        local_rope_theta=1e4,
        tie_word_embeddings=True,
        gemma=True,
    ),
}
