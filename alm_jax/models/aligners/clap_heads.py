"""What CLAP has over its audio encoder, in an aligner's place: projections, text tower, and how both are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from alm_jax.models.clap import AudioHead, ProjectionKind, Similarity, Space, TextConfig, TextTower
from alm_jax.models.contrast import sigmoid_contrast, softmax_contrast, unit
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.features import AlignerText, Features

_MOST_SCALE = 100.0  # CLIP's limit


@dataclass(frozen=True)
class ClapHeadsConfig:
    """Sizes; the defaults are MS-CLAP 2023's over HTSAT.

    Attributes:
        dim: encoder width. layers: tapped layers that are heard. steps: T, steps of the features.
        out_dim: width of the common space.
        text, projection, scales, contrast, dropout: see `ClapConfig`.
    """

    dim: int = 768
    layers: int = 1
    steps: int = 64
    out_dim: int = 1024
    text: TextConfig = Gpt2Config()
    projection: ProjectionKind | None = "residual"
    scales: Literal[1, 2] = 1
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    dropout: float = 0.5

    def __post_init__(self):
        self.space.check(audio=self.dim * self.layers, text=self.text.dim)

    @property
    def space(self) -> Space:
        """The common space."""
        return Space(self.out_dim, self.projection, self.dropout)

    @property
    def tokens(self) -> int:
        """A clip is one embedding."""
        return 1

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(K, T, D) of one slot's encoder features."""
        return self.layers, self.steps, self.dim

    @property
    def vocab_size(self) -> int:
        """Ids of the texts that it reads."""
        return self.text.vocab_size


class ClapHeads(Similarity):
    """Features of clips, and texts -> embeddings in one space, and the loss of pairs."""

    def __init__(self, config: ClapHeadsConfig, key: jax.Array):
        c, keys = config, jax.random.split(key)
        super().__init__(c.scales, c.contrast)
        self.audio = AudioHead(c.dim * c.layers, c.space, keys[0])
        self.text = TextTower(c, keys[1])
        self.config = config

    def encode_audio(self, features: Features, key: jax.Array | None = None) -> jax.Array:
        """[K, B, T, D] -> embeddings float32 [B, out_dim] of length 1; `key` turns dropout on."""
        return unit(self.audio(features, key).astype(jnp.float32))

    def encode_text(self, text: AlignerText, key: jax.Array | None = None, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """[B, L] -> embeddings float32 [B, out_dim] of length 1."""
        return unit(self.text(text.tokens, text.mask.astype(jnp.int32), dtype, key).astype(jnp.float32))

    def contrast(self, audio: jax.Array, text: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """The loss of pairs of embeddings [B, out_dim], of which `rows` bool [B] count: InfoNCE or SigLIP's."""
        scale = jnp.minimum(jnp.exp(self.logit_scale[...]), _MOST_SCALE)
        if self.logit_bias is None:
            return softmax_contrast(audio, text, (scale[0], scale[-1]), rows)
        return sigmoid_contrast(audio, text, scale[0], self.logit_bias[0], rows)

    def __call__(self, features: Features, text: None = None, key: jax.Array | None = None):
        """[K, B, T, D] -> ([B, 1, out_dim], None), the clip's embedding as its one token."""
        return self.encode_audio(features, key)[:, None], None
