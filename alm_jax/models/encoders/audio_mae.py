"""Audio-MAE's encoder (Huang et al. 2022; official `models_vit.py`), as APT listens through it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.mesh import constrain
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import LayerNorm
from alm_jax.layers.patch import PatchEmbed, patch_grid
from alm_jax.layers.transformer import TransformerBlock
from alm_jax.models.features import Features, pool_steps


@dataclass(frozen=True)
class AudioMaeConfig:
    """Sizes; the defaults are the published ViT-B/16's.

    Attributes:
        frames, mels: spectrogram size. patch: edge of the square patches. stride: from one to the next; less than
            `patch` in the variant with overlapping patches (10).
        dim, heads, depth, mlp_dim, norm_eps: of the transformer.
        global_pool: True in fine-tuned models: no norm follows the blocks, and the classifier reads the normalised mean
            of the patches. False in pretrained ones: all tokens are normalised, and a classifier reads the class token.
        classes: outputs of the classifier; None leaves it out.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    frames: int = 1024
    mels: int = 128
    patch: int = 16
    stride: int = 16
    dim: int = 768
    heads: int = 12
    depth: int = 12
    mlp_dim: int = 3072
    norm_eps: float = 1e-6
    global_pool: bool = True
    classes: int | None = None
    remat: stack.Remat = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, frequency)."""
        return patch_grid(self.frames, self.mels, self.patch, (self.stride, self.stride))

    @property
    def has_norm(self) -> bool:
        """Whether a norm follows the blocks, over all tokens or before the classifier."""
        return not self.global_pool or self.classes is not None


class AudioMae(nnx.Module):
    """Filterbank frames -> one feature a patch, time-major (patch = t * F + f)."""

    def __init__(self, config: AudioMaeConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 4)
        self.patch_embed = PatchEmbed(c.patch, (c.stride, c.stride), c.dim, keys[0])
        self.class_token = init.normal(keys[1], (c.dim,), (ax.EMBED,))
        self.pos_embed = init.Buffer(sinusoids(c.dim, *c.grid), axes=(ax.POSITION, ax.EMBED))
        make = lambda k: TransformerBlock(c.dim, c.heads, c.mlp_dim, k, norm_eps=c.norm_eps)
        self.blocks = stack.build(make, keys[2], c.depth)
        self.norm = LayerNorm(c.dim, c.norm_eps) if c.has_norm else None
        self.head = None if c.classes is None else Dense(c.dim, c.classes, keys[3], axes=(ax.EMBED, None))
        self.config = config

    def embed(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> patch embeddings without positions [B, patches, dim]."""
        return rearrange(self.patch_embed(x), "b t f d -> b (t f) d")

    def streams(self, x: jax.Array, taps: tuple[int, ...] = (), pool: int | None = None) -> tuple[jax.Array, jax.Array]:
        """[B, frames, mels] -> (last stream [B, 1 + patches, dim], tapped streams [K, B, ...]), class token first.

        With `pool` the tapped streams are means over so many patches, without the class token.
        """
        x = self.embed(x)
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([token, x], axis=1) + self.pos_embed[...].astype(x.dtype)
        x = constrain(x, ax.BATCH, ax.LENGTH, None)
        reduce = lambda y: y if pool is None else pool_steps(y[:, 1:], pool)
        block = lambda layer, y: constrain(layer(y), ax.BATCH, ax.LENGTH, None)
        return stack.run_with_taps(block, self.blocks, x, taps=taps, reduce=reduce, remat=self.config.remat)

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, frames, mels] -> Features [K, B, patches / pool, dim]: the tapped blocks, or the encoder's own output.

        APT's code reads the output of the last block without a norm, which is what a model with `global_pool` puts out
        (its paper says the penultimate: `taps=(depth - 1,)`).
        """
        last, kept = self.streams(x, taps or (), pool)
        if taps is not None:
            return Features(kept)
        last = last if self.config.global_pool else self.norm(last)
        return Features(pool_steps(last[:, 1:], pool)[None])

    def seen(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """[B, frames, mels] -> [B, S, dim], encoded from the patches at `places` int [B, S] alone (pretraining)."""
        x = self.embed(x) + self.pos_embed[...][1:].astype(x.dtype)
        x = jnp.take_along_axis(x, places[..., None], axis=1)
        token = (self.class_token[...] + self.pos_embed[...][0]).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], axis=1)
        block = lambda layer, x, _: (constrain(layer(x), ax.BATCH, ax.LENGTH, None), None)
        x, _ = stack.run(block, self.blocks, constrain(x, ax.BATCH, ax.LENGTH, None), remat=self.config.remat)
        return self.norm(x)[:, 1:]

    def pooled(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> [B, dim], what the classifier reads; for models with a norm."""
        last, _ = self.streams(x)
        return self.norm(last[:, 1:].mean(1)) if self.config.global_pool else self.norm(last[:, 0])

    def classify(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> logits [B, classes]; for models with a classifier."""
        return self.head(self.pooled(x))

    def segments(self, x: jax.Array) -> jax.Array:
        """Frames of a long clip [B, n, mels] -> windows of the encoder's size [B, S, frames, mels].

        They lie side by side, the last one filled with zeros (official `get_audio_embedding` of APT).
        """
        count = -(-x.shape[1] // self.config.frames)
        x = jnp.pad(x, ((0, 0), (0, count * self.config.frames - x.shape[1]), (0, 0)))
        return rearrange(x, "b (s n) m -> b s n m", s=count)


def sinusoids(dim: int, times: int, frequencies: int) -> jax.Array:
    """Fixed positions [1 + patches, dim] (official `get_2d_sincos_pos_embed_flexible`): zeros for the class token;
    sines and cosines of the frequency index in the first half of the width, of the time index in the second."""
    rate = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))

    def along(index: np.ndarray) -> np.ndarray:
        angles = index.reshape(-1, 1) * rate
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    time, frequency = np.meshgrid(np.arange(times), np.arange(frequencies), indexing="ij")
    table = np.concatenate([along(frequency), along(time)], axis=1)
    return jnp.asarray(np.pad(table, ((1, 0), (0, 0))), jnp.float32)
