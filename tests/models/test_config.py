"""Configurations that nothing could compute are refused where they are made."""

import numpy as np
import pytest

import flexdraft_jax as fd


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yarn", 2.0), "rope_type='yarn': must be one of 'linear', 'llama3'"),
        (("linear", 0.0), "factor=0.0: must be positive"),
        (("llama3", 8.0, 4.0, 4.0), "low_freq_factor=4.0: must be below high_freq_factor=4.0"),
    ],
)
def test_rope_scaling(arguments, message):
    with pytest.raises(ValueError, match=message):
        fd.RopeScaling(*arguments)


SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
}


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("hidden_size", 8.0, TypeError, "hidden_size=8.0: must be an integer"),
        ("num_layers", True, TypeError, "num_layers=True: must be an integer"),
        ("num_layers", 10**6, ValueError, "num_layers=1000000: must be between 1 and 1000"),
        ("vocab_size", 2**31, ValueError, "vocab_size=2147483648: must be at most 2147483647"),
        ("head_dim", 0, ValueError, "head_dim=0: must be at least 1"),
        ("rms_norm_eps", float("nan"), ValueError, "rms_norm_eps=nan: must be positive, and fin"),
        ("rope_theta", float("inf"), ValueError, "rope_theta=inf: must be positive, and finite"),
        ("rope_theta", 10**400, ValueError, "rope_theta=1000.*: must be positive, and finite"),
        ("qk_norm", 1, TypeError, "qk_norm=1: must be True or False"),
        ("rope_scaling", {}, TypeError, "rope_scaling={}: must be a RopeScaling or None"),
        ("hidden_act", "relu", ValueError, "hidden_act='relu': must be one of 'silu', 'gelu_py"),
        ("layer_windows", [None], TypeError, "layer_windows=.*: must be a tuple, each entry an in"),
        ("layer_windows", (0,), ValueError, r"layer_windows=\(0,\): must be between 1 and"),
        ("eos_token_ids", (20,), ValueError, r"eos_token_ids=\(20,\): must be between 0 and 19"),
    ],
)
def test_fields_of_a_target(field, value, error, message):
    fd.TargetConfig(**SHAPE, rope_theta=np.float64(1e6))
    with pytest.raises(error, match=message):
        fd.TargetConfig(**{**SHAPE, field: value})
