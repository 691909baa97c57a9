"""Configurations that nothing could compute are refused where they are made."""

import pytest

import flexdraft_jax as fd


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yarn", 2.0), "rope_type='yarn': must be 'linear' or 'llama3'"),
        (("linear", 0.0), "factor=0.0: must be positive"),
        (("llama3", 8.0, 4.0, 4.0), "low_freq_factor=4.0: must be below high_freq_factor=4.0"),
    ],
)
def test_rope_scaling(arguments, message):
    with pytest.raises(ValueError, match=message):
        fd.RopeScaling(*arguments)
