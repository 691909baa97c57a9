"""What a Hugging Face `config.json` means, family by family.

The families differ in a few places only, and silently: a field that is absent means the family's
own default, the same field has a bias on other projections, a window counts for other layers.
Each is one entry of `FAMILIES`. What this project would compute differently from Hugging Face is
refused here, with the field's name and value.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flexdraft_jax.checkpoints import fields
from flexdraft_jax.checkpoints.families import FAMILIES, Family
from flexdraft_jax.config import INT32_MAX, MAX_LAYERS, Experts, RopeScaling, TargetConfig

# Shared by the families' Hugging Face classes.
_GEMMA_ACTIVATION = "gelu_pytorch_tanh"
_DEFAULT_QUERY_PRE_ATTN_SCALAR = 256
_DEFAULT_SLIDING_WINDOW_PATTERN = 6
_DEFAULT_MAX_WINDOW_LAYERS = 28


def target_config_from_hf(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
) -> TargetConfig:
    """Reads the contents of `config.json`.

    Args:
        config: the parsed file, of transformers 4 or 5.
        generation_config: the parsed `generation_config.json`. Its `eos_token_id` wins over the
            config's, as in Hugging Face `generate`.

    Raises:
        ValueError: a family or feature that is not supported, or a field that is missing or holds
            something unusable; names the field, the value and what would be right.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type={model_type!r}: must be one of {', '.join(map(repr, FAMILIES))}"
        )
    family = FAMILIES[model_type]
    _refuse_other_mathematics(config, family)
    hidden_size = fields.integer(config, "hidden_size")
    num_heads = fields.integer(config, "num_attention_heads")
    head_dim = fields.integer(config, "head_dim", family.head_dim, null=None)
    if head_dim is None:
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size={hidden_size}: must be a multiple of num_attention_heads={num_heads} "
                "where the config has no head_dim"
            )
        head_dim = hidden_size // num_heads
    num_layers = fields.integer(config, "num_hidden_layers", maximum=MAX_LAYERS)
    max_position_embeddings = fields.integer(
        config, "max_position_embeddings", family.max_position_embeddings
    )
    has_bias = family.attention_bias == "field" and fields.flag(config, "attention_bias", False)
    return TargetConfig(
        model_type=model_type,
        vocab_size=fields.integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer(
            # Where every layer has experts, the MLP that the other field is for does not exist.
            config,
            "moe_intermediate_size" if family.experts else "intermediate_size",
        ),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer(config, "num_key_value_heads", family.num_kv_heads, null=None)
        or num_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number(config, "rms_norm_eps", family.rms_norm_eps),
        tie_word_embeddings=fields.flag(config, "tie_word_embeddings", family.tie_word_embeddings),
        qkv_bias=has_bias or family.attention_bias == "qkv",
        o_bias=has_bias,
        mlp_bias=family.mlp_bias and fields.flag(config, "mlp_bias", False),
        qk_norm=family.qk_norm,
        layer_windows=_layer_windows(config, family, num_layers),
        max_position_embeddings=max_position_embeddings,
        eos_token_ids=_eos_token_ids(config, generation_config or {}, family),
        **_rope(config, family, max_position_embeddings),
        **(_gemma(config, head_dim) if family.gemma else {}),
        **(_experts(config) if family.experts else {}),
    )


def target_config_to_hf(config: TargetConfig) -> dict[str, Any]:
    """The contents of a `config.json` that Hugging Face reads as the same model.

    RoPE is written as `rope_theta` and `rope_scaling`, which transformers 4 and 5 both read.

    Raises:
        ValueError: the family's config class has no words for this config (a Mistral with biases,
            say); names every field that would be lost.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type={config.model_type!r}: must be one of {', '.join(map(repr, FAMILIES))}"
        )
    family = FAMILIES[config.model_type]
    eos = list(config.eos_token_ids)
    hf: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_activation" if family.gemma else "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        # null, not absent: Llama and Mistral would read an absent field as token 2, Phi-3 as 32000,
        # which smaller vocabularies do not have.
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": None,
    }
    if family.attention_bias == "field":
        hf["attention_bias"] = config.qkv_bias
    if family.mlp_bias:
        hf["mlp_bias"] = config.mlp_bias
    if family.partial_rotary:
        hf["partial_rotary_factor"] = config.partial_rotary_factor
    if family.local_rope_theta is not None:
        hf["rope_local_base_freq"] = config.local_rope_theta
    if config.experts is not None:
        hf |= {
            "num_experts": config.experts.number,
            "num_experts_per_tok": config.experts.per_token,
            "norm_topk_prob": config.experts.normalize,
            "moe_intermediate_size": config.intermediate_size,
        }
    if family.gemma:
        hf["query_pre_attn_scalar"] = config.query_pre_attn_scalar or config.head_dim
    hf |= _windows_to_hf(config, family)
    read_back = dataclasses.asdict(target_config_from_hf(hf))
    lost = [
        f"{name}={value!r} (would be read as {read_back[name]!r})"
        for name, value in dataclasses.asdict(config).items()
        if read_back[name] != value
    ]
    if lost:
        raise ValueError(
            f"model_type={config.model_type!r}: its config.json cannot say {', '.join(lost)}"
        )
    return hf


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a mixture of experts in every layer."""
    for name, wanted in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.get(name, wanted) not in (wanted, None):
            raise ValueError(
                f"{name}={config[name]!r}: layers without experts are not supported; must be "
                f"{wanted}, or absent"
            )
    number = fields.integer(config, "num_local_experts", 128)
    number = fields.integer(config, "num_experts", number)
    per_token = fields.integer(config, "num_experts_per_tok", 8)
    if per_token > number:
        raise ValueError(f"num_experts_per_tok={per_token}: must be at most num_experts={number}")
    return {
        "experts": Experts(number, per_token, fields.flag(config, "norm_topk_prob", False)),
    }


def _gemma(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The fields of what Gemma does otherwise."""
    scalar = fields.integer(config, "query_pre_attn_scalar", _DEFAULT_QUERY_PRE_ATTN_SCALAR)
    return {
        "query_pre_attn_scalar": None if scalar == head_dim else scalar,
        "hidden_act": _GEMMA_ACTIVATION,
        "output_norms": True,
        "zero_centered_norms": True,
        "scale_embeddings": True,
    }


def _refuse_other_mathematics(config: Mapping[str, Any], family: Family) -> None:
    """Fields that change what Hugging Face computes and that this project does not follow."""
    allowed: dict[str, tuple[Any, ...]] = {
        "quantization_config": (None,),
        "per_layer_config": (None,),
        "is_causal": (None, True),
        "is_encoder_decoder": (None, False),
    }
    if not family.partial_rotary:
        allowed["partial_rotary_factor"] = (None, 1.0)
    if family.gemma:
        allowed["hidden_activation"] = (_GEMMA_ACTIVATION,)
        allowed["attn_logit_softcapping"] = allowed["final_logit_softcapping"] = (None,)
        allowed["use_bidirectional_attention"] = (None, False)
    else:
        allowed["hidden_act"] = ("silu", "swish")
    for name, values in allowed.items():
        if name in config and config[name] not in values:
            raise ValueError(
                f"{name}={config[name]!r}: not supported; must be "
                f"{' or '.join(repr(value) for value in values)}, or absent"
            )


def _rope(
    config: Mapping[str, Any], family: Family, max_position_embeddings: int
) -> dict[str, Any]:
    """The fields of RoPE, from `rope_scaling` (transformers 4) or `rope_parameters` (5)."""
    # Hugging Face's order of precedence: an older field wins as a whole.
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = fields.mapping(config, key) or {}
    local: dict[str, Any] = {}
    if family.local_rope_theta is not None:
        local["local_rope_theta"], rope = _rope_by_layer(config, family.local_rope_theta)
    theta = fields.number(config, "rope_theta", family.rope_theta)
    inner_theta = fields.number(rope, "rope_theta", theta, where=key)
    if "rope_theta" in config and inner_theta != theta:
        raise ValueError(
            f"rope_theta={theta!r} and {key}.rope_theta={inner_theta!r}: must be equal"
        )
    if not family.partial_rotary and rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(
            f"{key}.partial_rotary_factor={rope['partial_rotary_factor']!r}: not supported; must "
            "be 1.0, or absent"
        )
    part = fields.number(config, "partial_rotary_factor", 1.0, null=1.0)
    return {
        "rope_theta": inner_theta,
        "rope_scaling": _rope_scaling(config, rope, key, family, max_position_embeddings),
        "partial_rotary_factor": fields.number(
            rope, "partial_rotary_factor", part, null=part, where=key
        ),
        **local,
    }


def _rope_by_layer(config: Mapping[str, Any], default: float) -> tuple[float, Mapping[str, Any]]:
    """The base of layers with a window, and what the fields say of the others."""
    kinds = fields.mapping(config, "rope_parameters") or {}
    if not kinds.keys() <= {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"rope_parameters={dict(kinds)!r}: must hold 'full_attention' and 'sliding_attention'"
        )
    local = fields.mapping(kinds, "sliding_attention") or {}
    theta = fields.number(config, "rope_local_base_freq", default)
    theta = fields.number(local, "rope_theta", theta, where="rope_parameters.sliding_attention")
    if local.get("rope_type", "default") != "default":
        raise ValueError(
            f"rope_parameters.sliding_attention.rope_type={local['rope_type']!r}: not supported; "
            "must be 'default'"
        )
    full = fields.mapping(kinds, "full_attention") or {}
    return theta, {**full, **(fields.mapping(config, "rope_scaling") or {})}


def _rope_scaling(
    config: Mapping[str, Any],
    rope: Mapping[str, Any],
    key: str,
    family: Family,
    max_position_embeddings: int,
) -> RopeScaling | None:
    """What `rope`, the field `key` of the config, says."""
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in family.rope_types:
        raise ValueError(
            f"{key}.rope_type={rope_type!r}: not supported for model_type="
            f"{config['model_type']!r}; must be {' or '.join(map(repr, family.rope_types))}"
        )
    if rope_type == "linear":
        return RopeScaling("linear", fields.number(rope, "factor", where=key))
    if rope_type == "llama3":
        original = fields.integer(
            rope, "original_max_position_embeddings", max_position_embeddings, where=key
        )
        # Where both are there Hugging Face takes the one outside.
        original = fields.integer(config, "original_max_position_embeddings", original)
        low, high = (
            fields.number(rope, f"{end}_freq_factor", where=key) for end in ("low", "high")
        )
        return RopeScaling("llama3", fields.number(rope, "factor", where=key), low, high, original)
    nested = [name for name, value in rope.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(f"{key}.{nested[0]}: other RoPE per layer type is not supported")
    return None


def _rope_scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.rope_type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return dataclasses.asdict(scaling)


def _layer_windows(
    config: Mapping[str, Any], family: Family, num_layers: int
) -> tuple[int | None, ...]:
    """The window of each layer, None where it sees everything."""
    if family.windows in ("never", "all", "flag"):
        # transformers would load a Mistral with layer types as yet another family.
        _refuse_unless_absent(config, "layer_types")
        flagged = family.windows == "flag"
        if flagged and not fields.flag(config, "use_sliding_window", False):
            return (None,) * num_layers
        if family.windows != "never":
            window = fields.integer(config, "sliding_window", family.sliding_window, null=None)
            return (window,) * num_layers
        _refuse_unless_absent(config, "sliding_window")
        return (None,) * num_layers
    window = None
    if family.windows == "pattern" or fields.flag(config, "use_sliding_window", False):
        window = fields.integer(config, "sliding_window", family.sliding_window, null=None)
    kinds = config.get("layer_types")
    if kinds is None and family.windows == "pattern":
        every = fields.integer(config, "sliding_window_pattern", _DEFAULT_SLIDING_WINDOW_PATTERN)
        layers = range(1, num_layers + 1)
        kinds = ["sliding_attention" if i % every else "full_attention" for i in layers]
    if kinds is None:
        first = fields.integer(config, "max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS, minimum=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or any(kind not in known for kind in kinds)
    ):
        raise ValueError(
            f"layer_types={kinds!r}: must list 'full_attention' or 'sliding_attention' for each of "
            f"the num_hidden_layers={num_layers} layers"
        )
    if window is None and "sliding_attention" in kinds:
        raise ValueError(
            f"layer_types={kinds!r}: has sliding layers, so "
            + ("" if family.windows == "pattern" else "use_sliding_window must be true and ")
            + "sliding_window must be a number"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _refuse_unless_absent(config: Mapping[str, Any], name: str) -> None:
    if config.get(name) is not None:
        raise ValueError(
            f"{name}={config[name]!r}: not supported for model_type={config['model_type']!r}; "
            "must be absent"
        )


def _windows_to_hf(config: TargetConfig, family: Family) -> dict[str, Any]:
    """The fields that `_layer_windows` reads; one window size at most can be said."""
    windows = config.layer_windows
    window = next((w for w in windows if w is not None), None)
    if family.windows == "never":
        return {}
    if family.windows == "all":
        return {"sliding_window": window}
    if family.windows == "flag":
        return {"use_sliding_window": window is not None, "sliding_window": window}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    if family.windows == "pattern":
        return {"sliding_window": window, "layer_types": kinds}
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        # For readers older than `layer_types`: right where the full layers come first.
        "max_window_layers": (kinds + ["sliding_attention"]).index("sliding_attention"),
        "layer_types": kinds,
    }


def _eos_token_ids(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], family: Family
) -> tuple[int, ...]:
    where = ""
    value = generation_config.get("eos_token_id")
    if value is not None:
        where = "generation_config.json: "
    elif "eos_token_id" in config:
        value = config["eos_token_id"]
    else:
        return family.eos_token_ids
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= INT32_MAX for i in ids):
        raise ValueError(
            f"{where}eos_token_id={value!r}: must be a token id, a list of them, or null"
        )
    if ids and max(ids) >= config["vocab_size"]:
        raise ValueError(
            f"{where}eos_token_id={value!r}: must be below vocab_size={config['vocab_size']}"
        )
    return tuple(ids)
