"""Image files and videos to pixels."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from alm_jax.core.errors import DataError


def load_image(path: str | os.PathLike) -> np.ndarray:
    """uint8 [H, W, 3] of a picture that Pillow reads.

    Raises:
        DataError: it cannot be read; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that can be decoded: give a JPEG or PNG file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}: give an image that can be read") from error


def load_frames(path: str | os.PathLike, count: int) -> np.ndarray:
    """uint8 [count, H, W, 3]: the middle frames of `count` equally long parts of a video.

    Raises:
        DataError: it cannot be read, or has no frames; the message names the file.
    """
    try:
        import av
    except ImportError:
        raise DataError(f"{path}: videos need one package more: run `pip install 'alm_jax[video]'`") from None
    try:
        with av.open(os.fspath(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        wanted = ((np.arange(count) + 0.5) * total / count).astype(int).tolist()
        with av.open(os.fspath(path)) as container:
            frames = enumerate(container.decode(video=0))
            found = {i: frame.to_ndarray(format="rgb24") for i, frame in frames if i in wanted}
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(f"{path}: no video that can be decoded ({error}): give a file with pictures") from error
    if not found:
        raise DataError(f"{path}: a video without frames: give a file with pictures")
    return np.stack([found[i] for i in wanted])
