"""Logical axes of structs."""

import flax.struct
import jax
import jax.numpy as jnp
import pytest

from flexdraft_jax.parallel.axes import array_field, logical_axes


def test_axes_of_nested_structs_and_tuples():
    @flax.struct.dataclass
    class Inner:
        layers: tuple[jax.Array, ...] = array_field("batch", "slots")

    @flax.struct.dataclass
    class Outer:
        inner: Inner
        length: jax.Array = array_field("batch")

    outer = Outer(Inner((jnp.zeros((2, 3)), jnp.zeros((2, 3)))), jnp.zeros(2))
    axes = logical_axes(outer)
    assert axes.inner.layers == (("batch", "slots"),) * 2
    assert axes.length == ("batch",)


def test_an_unknown_axis():
    with pytest.raises(ValueError, match=r"axes=\['bach'\]"):
        array_field("bach")


def test_a_field_without_axes():
    @flax.struct.dataclass
    class Bare:
        length: jax.Array

    with pytest.raises(ValueError, match=r"Bare\.length"):
        logical_axes(Bare(jnp.zeros(2)))
