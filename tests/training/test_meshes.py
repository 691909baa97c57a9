"""Training on meshes; with eight devices in a process of its own, as all others have one."""

from pathlib import Path

import pytest


@pytest.mark.slow
def test_on_eight_devices(run_on_eight_devices) -> None:
    run_on_eight_devices(Path(__file__).with_name("on_eight_devices.py"), "slow or not slow")
