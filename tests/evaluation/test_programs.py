"""Compiled programs are forgotten before they are too many."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from flexdraft_jax.evaluation import programs


@pytest.mark.parametrize(("maps", "kept"), [(30_000, 1), (30_001, 0)])
def test_only_many_programs_are_forgotten(
    monkeypatch, tmp_path: pathlib.Path, maps: int, kept: int
) -> None:
    monkeypatch.setattr(programs, "_MEMORY_MAPS", tmp_path / "maps")
    monkeypatch.setattr(programs.gc, "collect", lambda: None)  # Long, with all that tests hold.
    programs._MEMORY_MAPS.write_bytes(b"7f00-7f01 r-xp\n" * maps)
    double = jax.jit(lambda x: 2 * x)
    # Programs of other tests stay.
    monkeypatch.setattr(programs.jax, "clear_caches", double.clear_cache)
    double(jnp.ones(3))
    programs.forget_programs_if_many()
    assert double._cache_size() == kept


def test_systems_without_maps_keep_everything(monkeypatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(programs, "_MEMORY_MAPS", tmp_path / "none")
    monkeypatch.setattr(programs.jax, "clear_caches", lambda: pytest.fail("forgot"))
    programs.forget_programs_if_many()
