"""CAV-MAE's audio branch fine-tuned on AudioSet: LTU's encoder (Gong et al. 2023; official `CAVMAEFTAudio`)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.mesh import constrain
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import LayerNorm
from alm_jax.layers.transformer import TransformerBlock
from alm_jax.models.features import Features, pool_steps


@dataclass(frozen=True)
class CavMaeConfig:
    """Sizes of the audio spectrogram transformer.

    Attributes:
        frames, mels: spectrogram size; patches are `patch` x `patch` without overlap.
        dim, heads, depth, mlp_ratio, norm_eps: of the transformer.
        joint_depth: how many of the last blocks are CAV-MAE's joint ones, which official checkpoints name apart
            (`blocks_u`, with the norms `norm1_a` and `norm2_a`); it changes no computation.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    frames: int = 1024
    mels: int = 128
    patch: int = 16
    dim: int = 768
    heads: int = 12
    depth: int = 12
    joint_depth: int = 1
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    remat: stack.Remat = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        return self.mels // self.patch, self.frames // self.patch


class CavMae(nnx.Module):
    """Normalised filterbank frames -> one feature a patch, frequency-major (patch = f * T + t)."""

    def __init__(self, config: CavMaeConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 4)
        patches = c.grid[0] * c.grid[1]
        self.patch_embed = Dense(c.patch**2, c.dim, keys[0], axes=(ax.PATCH, ax.EMBED))
        self.pos_embed = init.normal(keys[1], (patches, c.dim), (ax.POSITION, ax.EMBED))
        self.modality = init.normal(keys[2], (c.dim,), (ax.EMBED,))
        make = lambda k: TransformerBlock(c.dim, c.heads, int(c.dim * c.mlp_ratio), k, norm_eps=c.norm_eps)
        self.blocks = stack.build(make, keys[3], c.depth)
        self.norm = LayerNorm(c.dim, c.norm_eps)
        self.config = config

    def embed(self, x: jax.Array) -> jax.Array:
        """[B, frames, mels] -> patch embeddings without positions [B, patches, dim]."""
        p, (f, t) = self.config.patch, self.config.grid
        x = x[:, : t * p, : f * p]
        return self.patch_embed(rearrange(x, "b (t p) (f q) -> b (f t) (q p)", p=p, q=p))

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, frames, mels] -> Features [K, B, patches, dim]: the tapped blocks, or the normalised output if None."""
        x = self.embed(x)
        x = x + self.pos_embed[...].astype(x.dtype) + self.modality[...].astype(x.dtype)
        x = constrain(x, ax.BATCH, ax.LENGTH, None)
        reduce = lambda y: pool_steps(y, pool)
        block = lambda layer, y: constrain(layer(y), ax.BATCH, ax.LENGTH, None)
        x, kept = stack.run_with_taps(block, self.blocks, x, taps=taps or (), reduce=reduce, remat=self.config.remat)
        return Features(reduce(self.norm(x))[None] if taps is None else kept)
