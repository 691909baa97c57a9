"""Decoding on meshes; with eight devices in a process of its own, as all others have one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_eight_devices(which: str) -> None:
    environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    file = Path(__file__).with_name("on_eight_devices.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", which, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
