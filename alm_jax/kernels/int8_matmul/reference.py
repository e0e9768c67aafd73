"""Plain JAX: defines the result on every platform. Compilers read the codes inside the product where they can."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def forward(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """[..., in], int8 [in, out], float32 [out] -> [..., out] in the dtype of x."""
    y = jax.lax.dot_general(x, codes.astype(x.dtype), _contract(x, 0), preferred_element_type=jnp.float32)
    return (y * scale).astype(x.dtype)


def backward(dy: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """[..., out] -> [..., in]: the gradient of x."""
    scaled = (dy * scale).astype(dy.dtype)
    dx = jax.lax.dot_general(scaled, codes.astype(dy.dtype), _contract(dy, 1), preferred_element_type=jnp.float32)
    return dx.astype(dy.dtype)


def _contract(x: jax.Array, axis: int) -> tuple:
    return (((x.ndim - 1,), (axis,)), ((), ()))
