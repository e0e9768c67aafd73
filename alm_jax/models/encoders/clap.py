"""A CLAP as an encoder: each clip, or each text that stands for one, becomes a single feature (MATS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models.clap import TEXT_LENGTH, AudioTower, ClapConfig, TextTower
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.features import Features


@dataclass(frozen=True)
class ClapEncoderConfig:
    """A CLAP and which of its towers are there.

    Attributes:
        clap: the whole of it.
        towers: `audio` hears clips, `text` reads texts that stand for them (training on text alone), `both` do what
            they are given.
        text_tokens: longest text, special tokens counted; a longer one loses its end.
    """

    clap: ClapConfig = ClapConfig()
    towers: Literal["audio", "text", "both"] = "audio"
    text_tokens: int = TEXT_LENGTH

    @property
    def dim(self) -> int:
        """Width of the common space."""
        return self.clap.dim

    @property
    def depth(self) -> int:
        """Blocks of the tower that listens; what is read is their output."""
        audio = self.clap.audio
        if self.towers == "text":
            return self.clap.text.depth
        return sum(audio.depths) if isinstance(audio, HtsatConfig) else getattr(audio, "depth", 1)

    @property
    def heads(self) -> int:
        """Attention heads of the text tower, or else of the audio tower's first stage; 0 where nothing told them."""
        audio = self.clap.audio
        if self.towers != "audio":
            return self.clap.text.heads
        return audio.heads[0] if isinstance(audio, HtsatConfig) else getattr(audio, "heads", 1)

    @property
    def vocab_size(self) -> int | None:
        """Ids that the text tower reads; None if it is not there."""
        return None if self.towers == "audio" else self.clap.text.vocab_size

    @property
    def text_gap(self) -> str:
        """What stands between a text and its ending (`ClapConfig`)."""
        return self.clap.text_gap


class ClapEncoder(nnx.Module):
    """Windows of the front end, or token ids int [B, L] (-1 where a text has ended) -> Features [1, B, 1, dim], not of
    length 1."""

    def __init__(self, config: ClapEncoderConfig, key: jax.Array):
        if config.towers != "text":
            self.audio = AudioTower(config.clap, key)
        if config.towers != "audio":
            self.text = TextTower(config.clap, key)
        self.config = config

    def __call__(self, x: jax.Array, taps: None = None, pool: int = 1) -> Features:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return Features(self.audio(x)[None, :, None])
        # MS-CLAP fills up with 0; where there is a mask the id does not matter.
        return Features(self.text(jnp.maximum(x, 0), (x >= 0).astype(jnp.int32))[None, :, None])
