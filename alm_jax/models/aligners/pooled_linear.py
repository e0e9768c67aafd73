"""LTU's aligner: pool the patch grid, normalise, project (official `modeling_llama.py`, 598 and 667)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from einops import rearrange, reduce
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import layer_norm
from alm_jax.models.features import Features


@dataclass(frozen=True)
class PooledLinearConfig:
    """Sizes and constants.

    Attributes:
        dim: encoder width; out_dim: decoder width.
        grid: patches along (frequency, time). time_pool: neighbouring time patches that become one token.
        divisor: the features are divided by it before a LayerNorm without parameters. It is no no-op: it acts as a
            LayerNorm epsilon of 1e-5 * divisor**2. The paper mentions neither; the published weights need both.
    """

    dim: int = 768
    out_dim: int = 4096
    grid: tuple[int, int] = (8, 64)
    time_pool: int = 2
    divisor: float = 50.0
    norm_eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """Audio tokens a slot."""
        return self.grid[1] // self.time_pool

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(K, T, D) of one slot's encoder features."""
        return 1, self.grid[0] * self.grid[1], self.dim


class PooledLinear(nnx.Module):
    """[1, B, patches, dim] -> [B, tokens, out_dim]; one token covers 0.32 s in LTU."""

    def __init__(self, config: PooledLinearConfig, key: jax.Array):
        self.proj = Dense(config.dim, config.out_dim, key, axes=(ax.FEATURES, ax.EMBED))
        self.config = config

    def pool(self, features: Features) -> jax.Array:
        """Mean over frequency and over `time_pool` neighbours in time: [B, tokens, dim]."""
        f, _ = self.config.grid
        x = reduce(features.values[0], "b (f t) d -> b t d", "mean", f=f)
        return reduce(x, "b (t p) d -> b t d", "mean", p=self.config.time_pool)

    def normalise(self, pooled: jax.Array) -> jax.Array:
        """Divide and layer-normalise: [B, tokens, dim]."""
        return layer_norm(pooled / self.config.divisor, self.config.norm_eps)

    def __call__(self, features: Features, text: None = None, key: None = None) -> tuple[jax.Array, jax.Array | None]:
        """Features -> (tokens [B, tokens, out_dim], mask)."""
        mask = None
        if features.mask is not None:
            mask = rearrange(features.mask, "b (f t p) -> b f t p", f=self.config.grid[0], p=self.config.time_pool)
            mask = mask.any((1, 3))
        return self.proj(self.normalise(self.pool(features))), mask
