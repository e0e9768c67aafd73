"""MATS's mapper: one CLAP embedding becomes a prefix of tokens (Wang et al. 2025, section 3.2; official `mapper.py`,
`audio_llm_connector`; after ClipCap and Pengi)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense
from alm_jax.layers.transformer import TransformerBlock
from alm_jax.models.contrast import unit
from alm_jax.models.features import Features


@dataclass(frozen=True)
class MapperConfig:
    """Sizes; the defaults are those of MATS.

    Attributes:
        dim: width of the embedding; out_dim: decoder width.
        clip_tokens: tokens that the embedding is projected to. tokens: learnt ones behind them, which come out.
        width, depth, heads, mlp_ratio: of the transformer.
        noise_variance: of the Gaussian noise on each of the embedding's numbers in training, where texts stand for
            clips; the embedding has length 1 before and after. 0 adds none.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    dim: int = 1024
    out_dim: int = 4096
    clip_tokens: int = 40
    tokens: int = 40
    width: int = 1024
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 2.0
    noise_variance: float = 0.015
    remat: stack.Remat = "none"

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(K, T, D) of one slot's encoder features."""
        return 1, 1, self.dim


class Mapper(nnx.Module):
    """An embedding [1, B, 1, dim] -> [B, tokens, out_dim]."""

    def __init__(self, config: MapperConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 4)
        self.linear = Dense(c.dim, c.clip_tokens * c.width, keys[0], axes=(ax.FEATURES, ax.EMBED))
        self.prefix = init.normal(keys[1], (c.tokens, c.width), (ax.POSITION, ax.EMBED), std=1.0)
        hidden = int(c.width * c.mlp_ratio)
        make = lambda k: TransformerBlock(c.width, c.heads, hidden, k, bias="o", activation="relu")
        self.blocks = stack.build(make, keys[2], c.depth)
        self.proj = Dense(c.width, c.out_dim, keys[3], axes=(ax.FEATURES, ax.EMBED))
        self.config = config

    def begin(self, x: jax.Array) -> jax.Array:
        """Embeddings [B, dim] -> input of the first block [B, clip_tokens + tokens, width]."""
        c, rows = self.config, x.shape[0]
        prefix = jnp.broadcast_to(self.prefix[...].astype(x.dtype), (rows, c.tokens, c.width))
        return jnp.concatenate([self.linear(x).reshape(rows, c.clip_tokens, c.width), prefix], axis=1)

    def map(self, x: jax.Array) -> jax.Array:
        """Embeddings [B, dim] -> the prefix [B, tokens, width]."""
        x, _ = stack.run(
            lambda block, x, _: (block(x), None), self.blocks, self.begin(x), None, remat=self.config.remat
        )
        return x[:, self.config.clip_tokens :]

    def __call__(
        self, features: Features, text: None = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Features -> (tokens [B, tokens, out_dim], None); `key` adds the noise of training."""
        x = unit(features.values[0, :, 0])
        if key is not None and self.config.noise_variance:
            x = add_noise(x, jax.random.normal(key, x.shape, jnp.float32), self.config.noise_variance)
        return self.proj(self.map(x)), None


def add_noise(x: jax.Array, noise: jax.Array, variance: float) -> jax.Array:
    """Unit vectors of `x`, moved by Gaussian noise N(0, 1) scaled to `variance`, and of length 1 again."""
    return unit(unit(x) + (noise * variance**0.5).astype(x.dtype))
