"""Normalisations, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers import initializers as init


def layer_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + eps) over the last axis, without parameters."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias over the last axis (width `dim`)."""

    def __init__(self, dim: int, eps: float = 1e-5, axis: str = ax.EMBED):
        self.scale = init.ones((dim,), (axis,))
        self.bias = init.zeros((dim,), (axis,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = layer_norm(x.astype(jnp.float32), self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x**2) + eps) * scale over the last axis (LLaMA)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        self.scale = init.ones((dim,), (ax.EMBED,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation over the last axis by the statistics gathered in training: buffers, not updated here."""

    def __init__(self, dim: int, eps: float = 1e-5, axis: str | None = None):
        self.scale = init.ones((dim,), (axis,))
        self.bias = init.zeros((dim,), (axis,))
        self.mean = init.Buffer(jnp.zeros((dim,)), axes=(axis,))
        self.var = init.Buffer(jnp.ones((dim,)), axes=(axis,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim]."""
        normed = (x.astype(jnp.float32) - self.mean[...]) * jax.lax.rsqrt(self.var[...] + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)
