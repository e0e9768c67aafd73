"""The image encoder of BLIP-2 and InstructBLIP: EVA's ViT-g/14 without its last block (Fang et al. 2023; LAVIS
`eva_vit.py`; `transformers` `Blip2VisionModel`, `InstructBlipVisionModel`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
from alm_jax.layers.transformer import TransformerBlock
from alm_jax.models.features import Features

CHANNELS = 3


@dataclass(frozen=True)
class VitConfig:
    """Sizes; the defaults are the published ViT-g/14's.

    Attributes:
        size: edge of the square image. patch: edge of the square patches, which lie side by side.
        dim, heads, depth, mlp_dim, norm_eps: of the transformer.
        bias: which of the projections q, k, v and o have a bias (EVA's key has none; `transformers` gives it one).
        norm: whether a norm follows the blocks; False where the aligner brings its own (`ln_vision`).
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    size: int = 224
    patch: int = 14
    dim: int = 1408
    heads: int = 16
    depth: int = 39
    mlp_dim: int = 6144
    norm_eps: float = 1e-6
    bias: Literal["qkvo", "qvo", "o"] = "qvo"
    norm: bool = True
    remat: stack.Remat = "none"

    @property
    def steps(self) -> int:
        """Features an image: the class token's and one a patch."""
        return 1 + (self.size // self.patch) ** 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        return self.size, self.size, CHANNELS


class Vit(nnx.Module):
    """Images -> a feature of the class token and one a patch, row by row."""

    def __init__(self, config: VitConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 4)
        self.patch_embed = Dense(CHANNELS * c.patch**2, c.dim, keys[0], axes=(ax.PATCH, ax.EMBED))
        self.class_token = init.normal(keys[1], (c.dim,), (ax.EMBED,))
        self.pos_embed = init.normal(keys[2], (c.steps, c.dim), (ax.POSITION, ax.EMBED))
        make = lambda k: TransformerBlock(c.dim, c.heads, c.mlp_dim, k, bias=c.bias, norm_eps=c.norm_eps)
        self.blocks = stack.build(make, keys[3], c.depth)
        self.norm = LayerNorm(c.dim, c.norm_eps) if c.norm else None
        self.config = config

    def __call__(self, images: jax.Array) -> Features:
        """[B, size, size, 3] -> Features [1, B, 1 + patches, dim], the class token first."""
        c = self.config
        patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=c.patch, q=c.patch)
        x = self.patch_embed(patches)
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, c.dim))
        x = jnp.concatenate([token, x], axis=1) + self.pos_embed[...].astype(x.dtype)
        x = constrain(x, ax.BATCH, ax.LENGTH, None)
        body = lambda block, x, _: (constrain(block(x), ax.BATCH, ax.LENGTH, None), None)
        x, _ = stack.run(body, self.blocks, x, remat=c.remat)
        return Features((x if self.norm is None else self.norm(x))[None])
