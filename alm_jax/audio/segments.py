"""Long clips as several windows of a front end, side by side (official `get_audio_embedding` of APT)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.audio.io import audio_info
from alm_jax.core.errors import AudioError


def longer(frontend: KaldiFbank, count: int) -> KaldiFbank:
    """The front end with a window as long as `count` of its own."""
    return replace(frontend, frames=count * frontend.frames)


def count_windows(frontend: KaldiFbank, samples: int) -> int:
    """Windows that a clip of so many samples fills; one at least, the last may be padded."""
    frames = 1 + (samples - frontend.frame_samples) // frontend.hop
    return max(1, ceil(frames / frontend.frames))


def split(frontend: KaldiFbank, wave: np.ndarray, count: int) -> np.ndarray:
    """float32 [count, frames, mels] of a clip [n], padded or cut to that many windows.

    What depends on the whole clip (`KaldiFbank.peak`) is taken from all of it.
    """
    return longer(frontend, count).numpy(wave).reshape(count, *frontend.feature_shape)


@dataclass(frozen=True)
class Segments:
    """How many windows of a front end a file is heard in, by its header: so many as it fills, `most` at most."""

    frontend: KaldiFbank
    most: int

    def __call__(self, path: str | os.PathLike) -> int:
        """1 for a file that cannot be read, which is said where it is loaded."""
        try:
            info = audio_info(path)
        except AudioError:
            return 1
        samples = ceil(round(info.seconds * info.sample_rate) * self.frontend.sample_rate / info.sample_rate)
        return min(self.most, count_windows(self.frontend, samples))
