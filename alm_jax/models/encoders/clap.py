"""One tower of a CLAP as an encoder: each clip, or each text in its place, becomes a single feature (MATS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models.clap import AudioTower, ClapConfig, TextTower
from alm_jax.models.features import Features


@dataclass(frozen=True)
class ClapEncoderConfig:
    """A CLAP and the tower of it that listens: `audio`, or `text`, which stands for clips in training on text alone."""

    clap: ClapConfig = ClapConfig()
    tower: Literal["audio", "text"] = "audio"

    @property
    def dim(self) -> int:
        """Width of the common space."""
        return self.clap.dim

    @property
    def depth(self) -> int:
        """Blocks; what is read is their output."""
        return self.clap.text.depth if self.tower == "text" else sum(self.clap.audio.depths)

    @property
    def heads(self) -> int:
        """Attention heads of the text tower, or of the audio tower's first stage; 0 where nothing told them."""
        return self.clap.text.heads if self.tower == "text" else self.clap.audio.heads[0]


class ClapEncoder(nnx.Module):
    """Log-mel frames [B, frames, mels], or token ids int [B, L] -> Features [1, B, 1, dim], not of length 1."""

    def __init__(self, config: ClapEncoderConfig, key: jax.Array):
        self.tower = (TextTower if config.tower == "text" else AudioTower)(config.clap, key)
        self.config = config

    def __call__(self, x: jax.Array, taps: None = None, pool: int = 1) -> Features:
        """Texts are `models.clap.text_batch`'s. Their tower is causal and reads no padding: it needs no mask."""
        if self.config.tower == "audio":
            return Features(self.tower(x)[None, :, None])
        ids = x.astype(jnp.int32)
        return Features(self.tower(ids, jnp.ones_like(ids))[None, :, None])
