"""Parameters with logical axes, drawn from the distributions of the field."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Buffer(nnx.Variable):
    """A constant kept in checkpoints but never differentiated (tables that are not learnt)."""


def normal(key: jax.Array, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float = 0.02) -> nnx.Param:
    """Float32 parameter ~ N(0, std**2), truncated at two standard deviations."""
    return nnx.Param(std * jax.random.truncated_normal(key, -2.0, 2.0, shape), axes=axes)


def zeros(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    """Float32 parameter of zeros."""
    return nnx.Param(jnp.zeros(shape), axes=axes)


def ones(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    """Float32 parameter of ones."""
    return nnx.Param(jnp.ones(shape), axes=axes)
