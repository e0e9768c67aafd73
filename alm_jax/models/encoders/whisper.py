"""Whisper's audio encoder, any size (Radford et al. 2022; official `whisper/model.py`, `AudioEncoder`)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.mesh import constrain
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.norm import LayerNorm
from alm_jax.layers.transformer import TransformerBlock
from alm_jax.models.features import Features, pool_steps


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of the encoder; defaults are `base`.

    Attributes:
        mels: filterbank channels. positions: rows of the position table; input may be shorter (twice as many frames).
        dim, heads, depth: of the transformer; the feed-forward is four times as wide.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    mels: int = 80
    dim: int = 512
    heads: int = 8
    depth: int = 6
    positions: int = 1500
    remat: stack.Remat = "none"


class Conv(nnx.Module):
    """1-D convolution of width 3, padding 1: [B, T, in] -> [B, T / stride, out]."""

    def __init__(self, features_in: int, features_out: int, key: jax.Array, stride: int = 1):
        std = (3 * features_in) ** -0.5
        self.kernel = init.normal(key, (3, features_in, features_out), (None, ax.PATCH, ax.EMBED), std)
        self.bias = init.zeros((features_out,), (ax.EMBED,))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (self.stride,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC"))
        return y + self.bias[...].astype(x.dtype)


def sinusoids(positions: int, dim: int, max_timescale: float = 10000.0) -> jax.Array:
    """Whisper's fixed position table [positions, dim]: sines in the first half, cosines in the second."""
    half = dim // 2
    inverse = jnp.exp(-jnp.log(max_timescale) / (half - 1) * jnp.arange(half))
    angles = jnp.arange(positions)[:, None] * inverse[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class Whisper(nnx.Module):
    """Log-mel frames [B, frames, mels] -> features, one a 20 ms step."""

    def __init__(self, config: WhisperConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 3)
        self.conv1 = Conv(c.mels, c.dim, keys[0])
        self.conv2 = Conv(c.dim, c.dim, keys[1], stride=2)
        self.pos_embed = init.Buffer(sinusoids(c.positions, c.dim), axes=(ax.POSITION, ax.EMBED))
        make = lambda k: TransformerBlock(c.dim, c.heads, 4 * c.dim, k, bias="qvo")
        self.blocks = stack.build(make, keys[2], c.depth)
        self.norm = LayerNorm(c.dim)
        self.config = config

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, frames, mels] -> Features [K, B, frames / 2 / pool, dim].

        Args:
            taps: blocks to keep (0 is the input of the first), before the final norm; None gives the normalised output.
            pool: mean over so many steps, inside the scan (LTU-AS: 20, a step of 0.4 s).
        """
        gelu = lambda y: jax.nn.gelu(y, approximate=False)
        x = gelu(self.conv2(gelu(self.conv1(x))))
        x = x + self.pos_embed[...][: x.shape[1]].astype(x.dtype)
        x = constrain(x, ax.BATCH, ax.LENGTH, None)
        reduce = lambda y: pool_steps(y, pool)
        block = lambda layer, y: constrain(layer(y), ax.BATCH, ax.LENGTH, None)
        x, kept = stack.run_with_taps(block, self.blocks, x, taps=taps or (), reduce=reduce, remat=self.config.remat)
        return Features(reduce(self.norm(x))[None] if taps is None else kept)
