"""What LAION CLAP with fusion hears of a clip: the whole, shrunk, and three parts (Wu et al. 2023, section 2.3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alm_jax.audio.frontend import LibrosaLogMel


def fused_log_mel(frontend: LibrosaLogMel, wave: np.ndarray) -> tuple[np.ndarray, bool]:
    """The whole clip and the middle parts of its thirds, and whether it is longer than the front end's `seconds`.

    As `ClapFeatureExtractor` of `transformers`, which draws a part of each third at random. Where no clip of a batch is
    longer it also calls one of them so, drawn at random; this does not.

    Args:
        frontend: with `seconds`; its frames are those of every part. wave: `[n]` at its sample rate.

    Returns:
        `[4, frames, mels]` float32, four times the same for a clip that is not longer, and the flag.
    """
    if len(wave) <= frontend.samples:
        return np.stack([frontend.numpy(wave)] * 4), False
    whole, frames = replace(frontend, seconds=None).numpy(wave), frontend.frames
    if len(whole) == frames:
        return np.stack([whole] * 4), False
    thirds = np.array_split(np.arange(len(whole) - frames + 1), 3)
    starts = [third[len(third) // 2] if len(third) else 0 for third in thirds]
    return np.stack([_shrunk(whole, frames), *(whole[start : start + frames] for start in starts)]), True


def _shrunk(rows: np.ndarray, frames: int) -> np.ndarray:
    """`[n, mels]` -> `[frames, mels]`, linear between the two nearest rows (`interpolate(..., mode="bilinear")`)."""
    place = np.maximum(0.0, (np.arange(frames) + 0.5) * len(rows) / frames - 0.5)
    first = place.astype(int)
    share = (place - first)[:, None]
    mixed = rows[first] * (1.0 - share) + rows[np.minimum(first + 1, len(rows) - 1)] * share
    return mixed.astype(np.float32)
