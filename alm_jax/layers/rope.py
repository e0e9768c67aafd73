"""Rotary position embedding (Su et al. 2021) in LLaMA's half-split form."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotary_angles(positions: jax.Array, width: int, theta: float = 10000.0) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32 [B, L, 1, width], of `positions` int [B, L]."""
    inverse = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[..., None, None].astype(jnp.float32) * inverse
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate heads x [B, L, H, width]; coordinate i is paired with i + width/2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos + turned * sin).astype(x.dtype)
