"""Audio Spectrogram Transformer (Gong et al. 2021; `transformers` `ASTModel`, `ASTForAudioClassification`)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
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

_TOKENS = 2  # the class token and the distillation token, before the patches


@dataclass(frozen=True)
class AstConfig:
    """Sizes; the defaults are the published base model's.

    Attributes:
        frames, mels: spectrogram size. patch: edge of the square patches.
        time_stride, frequency_stride: from one patch to the next; less than `patch` where they overlap.
        dim, heads, depth, mlp_dim, norm_eps: of the transformer.
        classes: outputs of the classifier; None leaves it out.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    frames: int = 1024
    mels: int = 128
    patch: int = 16
    time_stride: int = 10
    frequency_stride: int = 10
    dim: int = 768
    heads: int = 12
    depth: int = 12
    mlp_dim: int = 3072
    norm_eps: float = 1e-12
    classes: int | None = None
    remat: stack.Remat = "none"

    @property
    def strides(self) -> tuple[int, int]:
        """From one patch to the next along (time, frequency)."""
        return self.time_stride, self.frequency_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        time, frequency = patch_grid(self.frames, self.mels, self.patch, self.strides)
        return frequency, time


class Ast(nnx.Module):
    """Normalised filterbank frames -> one feature a patch, frequency-major (patch = f * T + t)."""

    def __init__(self, config: AstConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 6)
        tokens = _TOKENS + c.grid[0] * c.grid[1]
        self.patch_embed = PatchEmbed(c.patch, c.strides, c.dim, keys[0])
        self.class_token = init.normal(keys[1], (c.dim,), (ax.EMBED,))
        self.distillation_token = init.normal(keys[5], (c.dim,), (ax.EMBED,))
        self.pos_embed = init.normal(keys[2], (tokens, c.dim), (ax.POSITION, ax.EMBED))
        make = lambda k: TransformerBlock(c.dim, c.heads, c.mlp_dim, k, norm_eps=c.norm_eps)
        self.blocks = stack.build(make, keys[3], c.depth)
        self.norm = LayerNorm(c.dim, c.norm_eps)
        self.classifier = None if c.classes is None else Classifier(c.dim, c.classes, keys[4], c.norm_eps)
        self.config = config

    def embed(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> input of the first block [B, 2 + patches, dim]."""
        x = rearrange(self.patch_embed(x), "b t f d -> b (f t) d")
        tokens = jnp.stack([self.class_token[...], self.distillation_token[...]]).astype(x.dtype)
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        x = jnp.concatenate([tokens, x], axis=1) + self.pos_embed[...].astype(x.dtype)
        return constrain(x, ax.BATCH, ax.LENGTH, None)

    def _run(self, x, taps, reduce):
        block = lambda layer, y: constrain(layer(y), ax.BATCH, ax.LENGTH, None)
        return stack.run_with_taps(block, self.blocks, self.embed(x), taps=taps, reduce=reduce, remat=self.config.remat)

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, frames, mels] -> Features [K, B, patches, dim]: the tapped blocks, or the normalised output if None."""
        reduce = lambda y: pool_steps(y[:, _TOKENS:], pool)
        x, kept = self._run(x, taps or (), reduce)
        return Features(reduce(self.norm(x))[None] if taps is None else kept)

    def pooled(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> [B, dim]: mean of the class and the distillation token after the final norm."""
        last, _ = self._run(x, (), lambda y: y[:, :0])
        return self.norm(last[:, :_TOKENS]).mean(1)

    def classify(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> logits [B, classes]; for models with a classifier."""
        return self.classifier(self.pooled(x))


class Classifier(nnx.Module):
    """Layer normalisation and a linear layer: [B, dim] -> logits [B, classes]."""

    def __init__(self, dim: int, classes: int, key: jax.Array, norm_eps: float):
        self.norm = LayerNorm(dim, norm_eps)
        self.dense = Dense(dim, classes, key, axes=(ax.EMBED, None))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(self.norm(x))
