import dataclasses
import math

import pytest

from flexdraft_jax.checkpoints.families import FAMILIES
from flexdraft_jax.checkpoints.hf_config import target_config_from_hf, target_config_to_hf
from flexdraft_jax.config import Experts, RopeScaling, TargetConfig

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _config(model_type, **changes):
    """A small config.json of a family with no optional field."""
    experts = {"moe_intermediate_size": 32} if model_type == "qwen3_moe" else {}
    return {
        "model_type": model_type,
        "vocab_size": 32_768,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        **experts,
        **changes,
    }


def _read(model_type, **changes) -> TargetConfig:
    return target_config_from_hf(_config(model_type, **changes))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_fields_mean_the_hugging_face_defaults(model_type):
    transformers = pytest.importorskip("transformers")
    hf = transformers.AutoConfig.for_model(**_config(model_type))
    ours = _read(model_type)
    assert ours.head_dim == (getattr(hf, "head_dim", None) or 64 // 32)
    assert ours.num_kv_heads == hf.num_key_value_heads
    assert ours.rms_norm_eps == hf.rms_norm_eps
    rope = hf.rope_parameters
    if model_type == "gemma3_text":
        assert ours.local_rope_theta == rope["sliding_attention"]["rope_theta"]
        assert (ours.query_pre_attn_scalar or ours.head_dim) == hf.query_pre_attn_scalar
        rope = rope["full_attention"]
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.rope_scaling is None
    assert ours.partial_rotary_factor == 1.0
    if model_type == "qwen3_moe":
        experts = Experts(hf.num_experts, hf.num_experts_per_tok, hf.norm_topk_prob)
        assert ours.experts == experts
    assert ours.tie_word_embeddings == hf.tie_word_embeddings
    assert ours.max_position_embeddings == hf.max_position_embeddings
    windowed = model_type in ("mistral", "gemma3_text")
    assert ours.layer_windows == (hf.sliding_window if windowed else None,) * 4
    assert ours.eos_token_ids == (() if hf.eos_token_id is None else (hf.eos_token_id,))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_round_trip_through_transformers(model_type):
    """What we write, transformers reads and writes again (its version 5), and we read back."""
    transformers = pytest.importorskip("transformers")
    changes = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500.0}
    if model_type == "phi3":
        changes = {"partial_rotary_factor": 0.5, "head_dim": 8}
    ours = _read(
        model_type, tie_word_embeddings=True, eos_token_id=[5, 7], num_key_value_heads=8, **changes
    )
    hf = transformers.AutoConfig.for_model(**target_config_to_hf(ours))
    assert target_config_from_hf(hf.to_dict()) == ours


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        # Biases: the same field, other projections.
        ("qwen3", {"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
        ("qwen3", {}, {"qkv_bias": False, "o_bias": False, "qk_norm": True}),
        ("qwen2", {}, {"qkv_bias": True, "o_bias": False, "qk_norm": False}),
        ("qwen2", {"attention_bias": False}, {"qkv_bias": True, "o_bias": False}),
        ("llama", {"attention_bias": True}, {"qkv_bias": True, "o_bias": True, "mlp_bias": False}),
        ("llama", {"mlp_bias": True}, {"qkv_bias": False, "mlp_bias": True}),
        ("mistral", {"attention_bias": True}, {"qkv_bias": False, "mlp_bias": False}),
        # Head size.
        ("llama", {}, {"head_dim": 2}),
        ("qwen3", {}, {"head_dim": 128}),
        ("qwen3", {"head_dim": None}, {"head_dim": 2}),
        ("mistral", {"head_dim": 16}, {"head_dim": 16}),
        ("qwen2", {"head_dim": 16}, {"head_dim": 16}),
        ("mistral", {"num_key_value_heads": None}, {"num_kv_heads": 32}),
        # RoPE, in the words of transformers 4 and 5.
        ("llama", {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        ("llama", {"rope_theta": 500000}, {"rope_theta": 5e5}),
        ("llama", {"rope_scaling": None, "rope_theta": 7.0}, {"rope_theta": 7.0}),
        ("llama", {"rope_parameters": {"rope_theta": 5e5}}, {"rope_theta": 5e5}),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": 1e6},
            {"rope_theta": 1e6, "rope_scaling": None},
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_scaling": RopeScaling("linear", 2.0), "rope_theta": 10_000.0},
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3"} | LLAMA3, "rope_theta": 5e5},
            {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64), "rope_theta": 5e5},
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3},
            {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64), "rope_theta": 5e5},
        ),
        # Windows.
        ("mistral", {"sliding_window": 8}, {"layer_windows": (8, 8, 8, 8)}),
        ("mistral", {"sliding_window": None}, {"layer_windows": (None,) * 4}),
        ("qwen2", {"sliding_window": 8}, {"layer_windows": (None,) * 4}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            {"layer_windows": (None, None, None, 8)},
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8},
            {"layer_windows": (None,) * 4},
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "max_window_layers": 0},
            {"layer_windows": (4096,) * 4},
        ),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 0,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            {"layer_windows": (None, 8, None, 8)},
        ),
        # Stop tokens.
        ("llama", {"eos_token_id": None}, {"eos_token_ids": ()}),
        ("llama", {"eos_token_id": [1, 2]}, {"eos_token_ids": (1, 2)}),
        ("qwen3", {"eos_token_id": 0}, {"eos_token_ids": (0,)}),
        ("phi3", {"sliding_window": 8}, {"layer_windows": (8, 8, 8, 8)}),
        ("qwen3_moe", {"sliding_window": 8}, {"layer_windows": (None,) * 4}),
        (
            "qwen3_moe",
            {"sliding_window": 8, "use_sliding_window": True},
            {"layer_windows": (8, 8, 8, 8)},
        ),
        (
            "gemma3_text",
            {"sliding_window": 8, "sliding_window_pattern": 2},
            {"layer_windows": (8, None, 8, None)},
        ),
        (
            "gemma3_text",
            {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2},
            {"layer_windows": (None, 8, None, 8)},
        ),
        # RoPE of a part, and of layers with a window.
        ("phi3", {"head_dim": 8, "partial_rotary_factor": 0.75}, {"partial_rotary_factor": 0.75}),
        (
            "phi3",
            {"head_dim": 8, "rope_parameters": {"partial_rotary_factor": 0.5}},
            {"partial_rotary_factor": 0.5},
        ),
        ("gemma3_text", {"rope_local_base_freq": 7}, {"local_rope_theta": 7.0, "rope_theta": 1e6}),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5.0},
            {"rope_theta": 5.0, "local_rope_theta": 1e4, "rope_scaling": RopeScaling("linear", 8)},
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 6.0},
                }
            },
            {"rope_theta": 5.0, "local_rope_theta": 6.0, "rope_scaling": RopeScaling("linear", 8)},
        ),
        ("gemma3_text", {"query_pre_attn_scalar": 168}, {"query_pre_attn_scalar": 168}),
        (
            "qwen3_moe",
            {"num_local_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
            {"experts": Experts(4, 2, True), "intermediate_size": 32},
        ),
        # Fields that change nothing.
        ("llama", {"pretraining_tp": 2, "attention_dropout": 0.1, "use_cache": False}, {}),
        ("llama", {"quantization_config": None, "partial_rotary_factor": 1.0}, {}),
    ],
)
def test_reading(model_type, changes, expected):
    config = dataclasses.asdict(_read(model_type, **changes))
    wanted = {
        k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in expected.items()
    }
    assert {name: config[name] for name in wanted} == wanted


def test_generation_config_wins_where_it_names_stop_tokens():
    config = _config("qwen3", eos_token_id=3)
    assert target_config_from_hf(config, {"eos_token_id": [4, 5]}).eos_token_ids == (4, 5)
    assert target_config_from_hf(config, {"temperature": 1.0}).eos_token_ids == (3,)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gpt2", {}, r"model_type='gpt2': must be one of 'qwen3', 'qwen3_moe', 'qwen2', 'llama'"),
        ("gemma3", {}, "model_type='gemma3': must be one of"),
        (None, {}, "model_type=None"),
        (["qwen3"], {}, "model_type="),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'.*'silu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("qwen3", {"quantization_config": {"bits": 4}}, r"quantization_config=\{'bits': 4\}"),
        ("qwen3", {"per_layer_config": {"0": {}}}, "per_layer_config"),
        ("qwen3", {"is_causal": False}, "is_causal=False"),
        (
            "qwen3",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type='yarn'.*'llama3'",
        ),
        ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type='dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope'"),
        ("llama", {"rope_scaling": {"type": ["yarn"]}}, r"rope_type=\['yarn'\]"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling='linear': must be an object"),
        (
            "llama",
            {"rope_scaling": {"type": "llama3"} | LLAMA3 | {"low_freq_factor": 4.0}},
            "low_freq_factor=4.0: must be below high_freq_factor=4.0",
        ),
        (
            "llama",
            {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}},
            "rope_theta=5.0 and rope_parameters.rope_theta=6.0: must be equal",
        ),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention",
        ),
        ("llama", {"rope_theta": 0}, "rope_theta=0: must be a positive number"),
        ("llama", {"rope_theta": math.nan}, "rope_theta=nan"),
        ("llama", {"rope_theta": 10**400}, "rope_theta=1000"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'"),
        (
            "llama",
            {"tie_word_embeddings": "yes"},
            "tie_word_embeddings='yes': must be true or false",
        ),
        ("llama", {"hidden_size": "64"}, "hidden_size='64': must be an integer from 1 to"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ("llama", {"num_hidden_layers": 10**30}, "num_hidden_layers=1000.* from 1 to 1000"),
        ("llama", {"eos_token_id": 2**31}, "eos_token_id=2147483648"),
        ("llama", {"vocab_size": True}, "vocab_size=True"),
        (
            "llama",
            {"hidden_size": 65},
            "hidden_size=65: must be a multiple of num_attention_heads=32",
        ),
        ("llama", {"num_key_value_heads": 5}, "num_kv_heads=5: must divide num_heads=32"),
        ("llama", {"head_dim": 3}, "head_dim=3: must be even"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0: must be an integer from 1 to"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "layer_types=.*'mistral'"),
        ("llama", {"sliding_window": 8}, "sliding_window=8: not supported for model_type='llama'"),
        ("qwen3", {"layer_types": ["full_attention"] * 3}, "layer_types=.*num_hidden_layers=4"),
        ("qwen3", {"layer_types": ["linear_attention"] * 4}, "layer_types=.*'sliding_attention'"),
        ("qwen3", {"layer_types": [["full_attention"]] * 4}, "layer_types="),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window must be true"),
        ("gemma3_text", {"layer_types": ["sliding_attention"]}, "layer_types="),
        (
            "gemma3_text",
            {"sliding_window": None},
            "layer_types=.*has sliding layers, so sliding_window must be a number",
        ),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation='silu'.*gelu_pytorch"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 5.0}},
            "must hold 'full_attention' and 'sliding_attention'",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention.rope_type='linear'",
        ),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, "rope_type='longrope'.*must be 'default'"),
        ("phi3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: must leave an even"),
        ("phi3", {"partial_rotary_factor": 2.0}, "partial_rotary_factor=2.0: must leave an even"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]: layers without experts"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2: layers without experts"),
        (
            "qwen3_moe",
            {"num_experts": 4},
            "num_experts_per_tok=8: must be at most num_experts=4",
        ),
        ("llama", {"eos_token_id": "</s>"}, "eos_token_id='</s>'"),
        ("llama", {"eos_token_id": [2, -1]}, r"eos_token_id=\[2, -1\]"),
    ],
)
def test_refusals_name_field_and_value(model_type, changes, message):
    with pytest.raises(ValueError, match=message):
        _read(model_type, **changes)


@pytest.mark.parametrize("field", [k for k in _config("llama") if k != "model_type"])
def test_fields_that_must_be_there(field):
    config = _config("llama")
    del config[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        target_config_from_hf(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_write_then_read_is_the_same(model_type):
    variants = [{}, {"tie_word_embeddings": True, "eos_token_id": [3, 4]}, {"eos_token_id": None}]
    if model_type in ("llama", "qwen3"):
        variants.append({"attention_bias": True})
    if model_type == "llama":
        variants.append({"mlp_bias": True, "rope_scaling": {"type": "llama3"} | LLAMA3})
    if model_type in ("qwen2", "qwen3"):
        kinds = ["full_attention", "sliding_attention"] * 2
        variants.append({"use_sliding_window": True, "sliding_window": 8, "layer_types": kinds})
    if model_type == "phi3":
        variants.append({"sliding_window": 8, "head_dim": 16, "partial_rotary_factor": 0.75})
    if model_type == "gemma3_text":
        variants.append({"sliding_window_pattern": 2, "query_pre_attn_scalar": 168})
    if model_type == "qwen3_moe":
        variants.append({"num_experts": 9, "use_sliding_window": True, "norm_topk_prob": True})
    for changes in variants:
        config = _read(model_type, **changes)
        assert target_config_from_hf(target_config_to_hf(config)) == config


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gpt2", {}, "model_type='gpt2'"),
        ("mistral", {"qkv_bias": True}, r"'mistral'.*qkv_bias=True \(would be read as False\)"),
        ("llama", {"qkv_bias": True}, "o_bias=False"),
        ("qwen2", {"qkv_bias": False}, "qkv_bias=False"),
        ("llama", {"qk_norm": True}, "qk_norm=True"),
        ("llama", {"layer_windows": (4, 4, 4, 4)}, "layer_windows"),
        ("mistral", {"layer_windows": (4, None, 4, 4)}, "layer_windows"),
        ("qwen3", {"layer_windows": (4, 8, None, None)}, "layer_windows"),
        ("qwen3", {"experts": Experts(4, 2, True)}, "experts="),
        ("llama", {"scale_embeddings": True}, "scale_embeddings=True"),
    ],
)
def test_configs_that_a_family_cannot_say(model_type, changes, message):
    family = model_type if model_type in FAMILIES else "llama"
    config = dataclasses.replace(_read(family), **({"model_type": model_type} | changes))
    with pytest.raises(ValueError, match=message):
        target_config_to_hf(config)
