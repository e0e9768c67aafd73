"""The pre-norm transformer block that AST, CAV-MAE, ViT, Whisper and the aligners of LTU-AS and MATS are made of."""

from __future__ import annotations

import jax
from flax import nnx

from alm_jax.layers.attention import SelfAttention
from alm_jax.layers.mlp import Activation, Mlp
from alm_jax.layers.norm import LayerNorm


class TransformerBlock(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)): [B, L, dim] -> [B, L, dim]; `bias` as in `Attention`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        key: jax.Array,
        *,
        bias: str = "qkvo",
        norm_eps: float = 1e-5,
        activation: Activation = "gelu",
    ):
        attn_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = SelfAttention(dim, heads, attn_key, bias=bias)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, hidden, mlp_key, activation=activation)

    def __call__(self, x: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
        x = x + self.attn(self.norm1(x), segment_ids)
        return x + self.mlp(self.norm2(x))
