"""BEATs (Chen et al. 2022; official `beats/BEATs.py`, `beats/backbone.py`): a post-norm transformer over patches whose
positions are a convolution and a gated relative bias."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import einops
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.core import axes as ax
from alm_jax.core.mesh import constrain
from alm_jax.kernels.attention import attention
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.attention import Attention
from alm_jax.layers.dense import Dense
from alm_jax.layers.mlp import Mlp
from alm_jax.layers.norm import LayerNorm
from alm_jax.layers.patch import PatchEmbed
from alm_jax.models.features import Features, pool_steps

FRONTEND = KaldiFbank(frames=998, window="povey", gain=2.0**15, mean=15.41663, std=2 * 6.55582)  # 10 s
_GATE = 8  # outputs of a gate's linear layer: two sums of four


@dataclass(frozen=True)
class BeatsConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
        patch: edge of the square patches, which lie side by side. embed_dim: width of a patch before the transformer's.
        dim, heads, depth, mlp_dim: of the transformer.
        conv_width, conv_groups: of the convolution over patches that tells positions.
        buckets, max_distance: of the relative bias: distances that it tells apart, and from where they all are one.
        classes: outputs of the classifier; None leaves it out.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    patch: int = 16
    embed_dim: int = 512
    dim: int = 768
    heads: int = 12
    depth: int = 12
    mlp_dim: int = 3072
    conv_width: int = 128
    conv_groups: int = 16
    buckets: int = 320
    max_distance: int = 800
    classes: int | None = None
    remat: stack.Remat = "none"


class PositionConv(nnx.Module):
    """Grouped convolution over steps and a GELU: [B, L, dim] -> [B, L, dim].

    The kernel is weight-normed: at each of its places a direction over all channels, and a length.
    """

    def __init__(self, dim: int, width: int, groups: int, key: jax.Array):
        std = 2 * (width * dim) ** -0.5
        self.direction = init.normal(key, (width, dim // groups, dim), (None, ax.PATCH, ax.EMBED), std)
        self.length = nnx.Param(_norm(self.direction[...])[:, 0, 0], axes=(None,))
        self.bias = init.zeros((dim,), (ax.EMBED,))
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        direction = self.direction[...]
        kernel = (direction * (self.length[...][:, None, None] / _norm(direction))).astype(x.dtype)
        width, layout = len(kernel), ("NWC", "WIO", "NWC")
        reach = ((width // 2, (width - 1) // 2),)
        y = jax.lax.conv_general_dilated(
            x, kernel, (1,), reach, dimension_numbers=layout, feature_group_count=self.groups
        )
        return jax.nn.gelu(y + self.bias[...].astype(x.dtype), approximate=False)


class GatedAttention(Attention):
    """Self-attention with a bias of relative positions that each query gates by itself: [B, L, dim] -> [B, L, dim]."""

    def __init__(self, dim: int, heads: int, key: jax.Array):
        keys = jax.random.split(key)
        super().__init__(dim, heads, keys[0])
        self.gate = Dense(dim // heads, _GATE, keys[1], axes=(None, None))
        self.gate_scale = init.ones((heads,), (None,))

    def __call__(self, x: jax.Array, position_bias: jax.Array) -> jax.Array:
        """`position_bias`: float32 [heads, L, L], the same in all layers."""
        q, k, v = self.split(x)
        sums = einops.reduce(self.gate(q).astype(jnp.float32), "b l h (two four) -> two b h l 1", "sum", two=2)
        update, reset = jax.nn.sigmoid(sums)
        gates = update * (reset * self.gate_scale[...][:, None, None] - 1) + 2  # [B, heads, L, 1]
        out = attention(q, k, v, bias=gates * position_bias)
        return self.o(rearrange(out, "b l h d -> b l (h d)"))


class DeepNormBlock(nnx.Module):
    """Post-norm block with scaled residuals (Wang et al. 2022): [B, L, dim] -> [B, L, dim]."""

    def __init__(self, config: BeatsConfig, key: jax.Array):
        c, keys = config, jax.random.split(key)
        self.attn = GatedAttention(c.dim, c.heads, keys[0])
        self.norm1 = LayerNorm(c.dim)
        self.mlp = Mlp(c.dim, c.mlp_dim, keys[1])
        self.norm2 = LayerNorm(c.dim)
        self.residual_scale = (2 * c.depth) ** 0.25

    def __call__(self, x: jax.Array, position_bias: jax.Array) -> jax.Array:
        x = self.norm1(self.residual_scale * x + self.attn(x, position_bias))
        return self.norm2(self.residual_scale * x + self.mlp(x))


class Beats(nnx.Module):
    """Frames of `FRONTEND` -> one feature a patch, time-major (patch = t * F + f), for clips of any length."""

    def __init__(self, config: BeatsConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 6)
        self.patch_embed = PatchEmbed(c.patch, (c.patch, c.patch), c.embed_dim, keys[0], bias=False)
        self.patch_norm = LayerNorm(c.embed_dim, axis=ax.FEATURES)
        self.proj = Dense(c.embed_dim, c.dim, keys[1], axes=(ax.FEATURES, ax.EMBED))
        self.pos_conv = PositionConv(c.dim, c.conv_width, c.conv_groups, keys[2])
        self.norm = LayerNorm(c.dim)
        self.position_bias = init.normal(keys[3], (c.buckets, c.heads), (ax.POSITION, None))
        self.blocks = stack.build(lambda k: DeepNormBlock(c, k), keys[4], c.depth)
        self.head = None if c.classes is None else Dense(c.dim, c.classes, keys[5], axes=(ax.EMBED, None))
        self.config = config

    def embed(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> input of the first block [B, patches, dim]; a ragged end of frames is left out."""
        x = rearrange(self.patch_embed(x), "b t f d -> b (t f) d")
        x = self.proj(self.patch_norm(x))
        return constrain(self.norm(x + self.pos_conv(x)), ax.BATCH, ax.LENGTH, None)

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, frames, mels] -> Features [K, B, patches / pool, dim].

        Args:
            taps: blocks to keep (0 is the input of the first); None gives the output of the last, which ends in a norm.
            pool: mean over so many patches (8: all bands of a time).
        """
        c, x = self.config, self.embed(x)
        distances = relative_buckets(x.shape[1], c.buckets, c.max_distance)
        bias = rearrange(self.position_bias[...][distances], "q k h -> h q k")
        reduce = lambda y: pool_steps(y, pool)
        block = lambda layer, y: constrain(layer(y, bias), ax.BATCH, ax.LENGTH, None)
        x, kept = stack.run_with_taps(block, self.blocks, x, taps=taps or (), reduce=reduce, remat=c.remat)
        return Features(reduce(x)[None] if taps is None else kept)

    def pooled(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> [B, dim], the mean over patches."""
        return self(x).values[0].mean(1)

    def classify(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> logits [B, classes], of which the official output is the sigmoid; with a classifier."""
        return self.head(self.pooled(x))


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket int32 [length, length] of each query and key (T5's): half of them for keys after the query; of each half,
    half for one distance each, the rest growing with the logarithm up to `max_distance`."""
    offsets = np.arange(length) - np.arange(length)[:, None]
    half, distance = buckets // 2, np.abs(offsets)
    exact = half // 2
    # In float32 as the official code, so that the edges between buckets are the same.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        log(max_distance / exact)
    )
    far = exact + (growth * np.float32(half - exact)).astype(np.int32)
    near = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (near + half * (offsets > 0)).astype(np.int32)


def _norm(direction: jax.Array) -> jax.Array:
    """Length of a kernel [width, in, out] at each place, [width, 1, 1]."""
    return jnp.sqrt(jnp.square(direction).sum((1, 2), keepdims=True))
