"""The peak is that of the call."""

import numpy as np
import pytest

from flexdraft_jax.evaluation import peak_memory
from flexdraft_jax.evaluation.peak_memory import peak_bytes, peak_source

MIB = 2**20


def test_a_large_array_is_seen_and_forgotten() -> None:
    if "all that it holds" not in peak_source():
        pytest.skip("this system can't forget a process's peak, or its device counts")
    small = peak_bytes(lambda: None)
    large = peak_bytes(lambda: np.ones(64 * MIB, np.uint8))
    again = peak_bytes(lambda: None)
    assert small is not None and large is not None and again is not None
    assert large > small + 50 * MIB and again < large - 50 * MIB


def test_a_device_that_counts_is_asked(monkeypatch) -> None:
    monkeypatch.setattr(peak_memory, "_device_peak", lambda: 7)
    assert peak_bytes(lambda: None) == 7
    assert peak_bytes(lambda: None, on_device=False) is None
    assert "device" in peak_source()
