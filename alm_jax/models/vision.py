"""The second sense of a model: images, and what is asked about them, to decoder embeddings (BLIP-2, InstructBLIP)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from alm_jax.core.errors import ConfigError
from alm_jax.models.aligners.qformer import QFormer, QFormerConfig
from alm_jax.models.encoders.vit import Vit, VitConfig
from alm_jax.models.features import AlignerText
from alm_jax.vision.frontend import ImageFrontend


@dataclass(frozen=True)
class VisionConfig:
    """An image encoder and its aligner.

    Attributes:
        frontend: pixels to images, done where they are loaded. encoder: images to features.
        aligner: features to tokens.
    """

    frontend: ImageFrontend
    encoder: VitConfig
    aligner: QFormerConfig

    def __post_init__(self):
        if self.encoder.size != self.frontend.size:
            raise ConfigError(
                f"vision.encoder.size {self.encoder.size} differs from frontend.size {self.frontend.size}"
            )
        if self.encoder.dim != self.aligner.dim:
            raise ConfigError(f"vision.aligner.dim {self.aligner.dim} differs from encoder.dim {self.encoder.dim}")


class Vision(nnx.Module):
    """Each image becomes as many tokens as the aligner has queries; the frames of a video follow each other in time."""

    def __init__(self, config: VisionConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.encoder = Vit(config.encoder, keys[0])
        self.aligner = QFormer(config.aligner, keys[1])
        self.config = config

    def __call__(self, images: jax.Array, text: AlignerText | None = None, key: jax.Array | None = None) -> jax.Array:
        """Images [B, I, H, W, 3], and the text [B, I, L] that the aligner may read -> embeddings [B, I * T, D]."""
        rows, slots = images.shape[:2]
        flat = lambda x: x.reshape(rows * slots, *x.shape[2:])
        tokens, _ = self.aligner(
            self.encoder(flat(images)), None if text is None else AlignerText(*map(flat, text)), key
        )
        return tokens.reshape(rows, slots * tokens.shape[1], tokens.shape[2])
