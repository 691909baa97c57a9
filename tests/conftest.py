"""Settings of every test: the CPU, and compiled programs kept between runs."""

import os
from pathlib import Path

# Before JAX is imported anywhere. A user's own choice of platform wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  (the platform must be chosen first)

_CACHE = Path(__file__).parents[1] / ".cache" / "jax"


def pytest_configure() -> None:
    """Lets a second run of the tests find its programs compiled."""
    jax.config.update("jax_compilation_cache_dir", str(_CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
