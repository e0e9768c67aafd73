"""Multi-head attention layers over `kernels.attention`."""

from __future__ import annotations

import jax
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.kernels.attention import attention
from alm_jax.layers.dense import Dense


class SelfAttention(nnx.Module):
    """Bidirectional multi-head self-attention (ViT, AST, Whisper): [B, L, dim] -> [B, L, dim].

    `key_bias=False` is Whisper's key projection without a bias.
    """

    def __init__(self, dim: int, heads: int, key: jax.Array, key_bias: bool = True):
        keys = jax.random.split(key, 4)
        self.q = Dense(dim, dim, keys[0], axes=(ax.EMBED, ax.HEADS))
        self.k = Dense(dim, dim, keys[1], axes=(ax.EMBED, ax.HEADS), bias=key_bias)
        self.v = Dense(dim, dim, keys[2], axes=(ax.EMBED, ax.HEADS))
        self.o = Dense(dim, dim, keys[3], axes=(ax.HEADS, ax.EMBED))
        self.heads = heads

    def __call__(self, x: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        q, k, v = (rearrange(f(x), "b l (h d) -> b l h d", h=self.heads) for f in (self.q, self.k, self.v))
        out = attention(q, k, v, q_segment_ids=segment_ids, kv_segment_ids=segment_ids)
        return self.o(rearrange(out, "b l h d -> b l (h d)"))
