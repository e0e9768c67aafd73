"""Pictures and frames of videos as a model sees them."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.vision.frontend import ImageFrontend
from alm_jax.vision.io import load_frames, load_image

Picture = str | Path | np.ndarray
"""An image file; or pixels uint8 [H, W, 3], red, green and blue."""


def pixels(images: Sequence[Picture], frontend: ImageFrontend) -> np.ndarray:
    """float32 [I, size, size, 3] of pictures.

    Raises:
        DataError: one cannot be read, or holds no pixels.
    """
    loaded = [image if isinstance(image, np.ndarray) else load_image(image) for image in images]
    return np.stack([frontend.numpy(image) for image in loaded]) if loaded else np.zeros((0, *frontend.feature_shape))


def pictures(path: str | Path, frames: int) -> list[np.ndarray]:
    """A picture, or so many frames of a video, uint8 [H, W, 3].

    Raises:
        DataError: it cannot be decoded. UsageError: the name's ending is that of no picture and no video.
    """
    kind = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
    if kind not in ("image", "video"):
        raise UsageError(f"{path}: the name ends like no picture's and no video's: give .jpg, .png, .mp4, ...")
    return list(load_frames(path, frames)) if kind == "video" else [load_image(path)]
