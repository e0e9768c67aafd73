"""LTU-AS's time-and-layer transformer over all Whisper layers (TLTR; official `modeling_llama.py`, 148)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import layer_norm
from alm_jax.layers.transformer import TransformerBlock
from alm_jax.models.features import Features


@dataclass(frozen=True)
class TltrConfig:
    """Sizes.

    Attributes:
        dim: encoder width; out_dim: decoder width.
        layers, tokens: tapped encoder layers, and steps after pooling (one token a step).
        time_heads, layer_heads: attention heads over time and over layers.
    """

    dim: int = 1280
    out_dim: int = 4096
    layers: int = 32
    tokens: int = 25
    time_heads: int = 1
    layer_heads: int = 8
    norm_eps: float = 1e-5

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(K, T, D) of one slot's encoder features."""
        return self.layers, self.tokens, self.dim


class Tltr(nnx.Module):
    """[K, B, T, dim] -> [B, T, out_dim]: attend over time in each layer, then over layers at each step, and average."""

    def __init__(self, config: TltrConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 3)
        self.time = TransformerBlock(c.dim, c.time_heads, 4 * c.dim, keys[0], bias="qvo")
        self.layer = TransformerBlock(c.dim, c.layer_heads, 4 * c.dim, keys[1], bias="qvo")
        self.proj = Dense(c.dim, c.out_dim, keys[2], axes=(ax.FEATURES, ax.EMBED))
        self.config = config

    def reduce(self, features: Features) -> jax.Array:
        """The transformer part: [K, B, T, dim] -> [B, T, dim]."""
        k, b, _, _ = features.values.shape
        x = self.time(rearrange(features.values, "k b t d -> (k b) t d"))
        x = self.layer(rearrange(x, "(k b) t d -> (b t) k d", k=k))
        return rearrange(x.mean(1), "(b t) d -> b t d", b=b)

    def __call__(self, features: Features, text: None = None, key: None = None) -> tuple[jax.Array, jax.Array | None]:
        """Features -> (tokens [B, T, out_dim], mask)."""
        return self.proj(layer_norm(self.reduce(features), self.config.norm_eps)), features.mask
