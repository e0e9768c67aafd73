"""From pixels to what an image encoder reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from alm_jax.core.errors import DataError


@dataclass(frozen=True)
class ImageFrontend:
    """CLIP's front end as BLIP-2 has it: scaled to a square whatever the shape, bicubic, then normalised (LAVIS
    `BlipImageEvalProcessor`, `transformers` `BlipImageProcessor`).

    Attributes:
        size: edge of the square. mean, std: of red, green and blue, in shares of full brightness.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, len(self.mean)

    def numpy(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] (red, green, blue) -> float32 [size, size, 3].

        Raises:
            DataError: it is no such array.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise DataError(f"pixels of shape {pixels.shape}, {pixels.dtype}: expected uint8 [height, width, 3]")
        square = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return (np.asarray(square, np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)
