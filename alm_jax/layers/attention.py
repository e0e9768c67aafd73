"""Multi-head attention layers over `kernels.attention`."""

from __future__ import annotations

from typing import Any

import jax
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.kernels.attention import attention
from alm_jax.layers.dense import Dense


class Attention(nnx.Module):
    """Multi-head attention over a context, by default the input: [B, L, dim], [B, S, context_dim] -> [B, L, dim].

    Args:
        context_dim: width of the context; None for self-attention.
        bias: which of the projections q, k, v and o have a bias (Whisper's key has none).
    """

    def __init__(self, dim: int, heads: int, key: jax.Array, *, context_dim: int | None = None, bias: str = "qkvo"):
        keys = jax.random.split(key, 4)
        source, into = (dim, ax.EMBED) if context_dim is None else (context_dim, ax.FEATURES)
        self.q = Dense(dim, dim, keys[0], axes=(ax.EMBED, ax.HEADS), bias="q" in bias)
        self.k = Dense(source, dim, keys[1], axes=(into, ax.HEADS), bias="k" in bias)
        self.v = Dense(source, dim, keys[2], axes=(into, ax.HEADS), bias="v" in bias)
        self.o = Dense(dim, dim, keys[3], axes=(ax.HEADS, ax.EMBED), bias="o" in bias)
        self.heads = heads

    def split(self, x: jax.Array, context: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, L, heads, width] of x, keys and values [B, S, heads, width] of the context."""
        context = x if context is None else context
        projected = (self.q(x), self.k(context), self.v(context))
        return tuple(rearrange(y, "b l (h d) -> b l h d", h=self.heads) for y in projected)

    def __call__(self, x: jax.Array, context: jax.Array | None = None, **mask: Any) -> jax.Array:
        """`mask`: what is seen, as `kernels.attention.attention` takes it (segment ids, `causal`, `prefix`)."""
        out = attention(*self.split(x, context), **mask)
        return self.o(rearrange(out, "b l h d -> b l (h d)"))


class SelfAttention(Attention):
    """Bidirectional self-attention (ViT, AST, Whisper) among the positions of one segment."""

    def __call__(self, x: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        return super().__call__(x, q_segment_ids=segment_ids, kv_segment_ids=segment_ids)
