"""Clips made worse in a known measure, the same each time: how much of a score is left."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from alm_jax.audio.io import load_audio
from alm_jax.audio.records import record_place
from alm_jax.core.errors import UsageError

Kind = Literal["noise", "gain", "lowpass", "clip"]
_UNITS = {"noise": "dB", "gain": "dB", "lowpass": "Hz", "clip": "dB"}
_ORDER = 6  # of the Butterworth filter


@dataclass(frozen=True)
class Corruption:
    """One way to make clips worse; called with a file it gives (samples, rate).

    Attributes:
        kind: `noise`: white noise, `level` dB below the clip; `gain`: louder by `level` dB, cut at full scale;
            `lowpass`: frequencies above `level` Hz removed; `clip`: peaks cut `level` dB below the highest.
        level: how much.

    Raises:
        UsageError: a level that makes no sense.
    """

    kind: Kind
    level: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.level) or (self.kind in ("lowpass", "clip") and self.level <= 0):
            raise UsageError(f"--corrupt {self}: expected a level above 0")

    def __str__(self) -> str:
        return f"{self.kind}:{self.level:g}{_UNITS[self.kind]}"

    @property
    def slug(self) -> str:
        """For names of folders."""
        return f"{self.kind}{self.level:g}{_UNITS[self.kind]}"

    def __call__(self, path: Path) -> tuple[np.ndarray, int]:
        samples, rate = load_audio(path)
        place = record_place(path)
        # Of a prepared set the clip's id; else folder and file, which stay the same where a collection is moved.
        return self.apply(samples, rate, place[2] if place else f"{path.parent.name}/{path.name}"), rate

    def apply(self, samples: np.ndarray, rate: int, name: str) -> np.ndarray:
        """Samples [n] made worse; noise depends on the clip's name alone."""
        samples = np.asarray(samples, np.float32)
        peak = float(np.abs(samples).max(initial=0.0))
        if self.kind == "noise":
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
            noise = rng.standard_normal(len(samples))
            worse = samples + noise * _rms(samples) / max(_rms(noise), 1e-12) * _gain(-self.level)
        elif self.kind == "gain":
            worse = np.clip(samples * _gain(self.level), -1.0, 1.0)
        elif self.kind == "clip":
            worse = np.clip(samples, -peak * _gain(-self.level), peak * _gain(-self.level))
        elif self.level < rate / 2:
            from scipy.signal import butter, sosfiltfilt

            sections = butter(_ORDER, self.level, fs=rate, output="sos")
            worse = sosfiltfilt(sections, samples, padlen=min(len(samples) - 1, 3 * _ORDER))
        else:
            worse = samples  # holds no such frequencies
        return np.asarray(worse, np.float32)


def read_corruption(text: str) -> Corruption:
    """`noise:10dB`, `gain:-20dB`, `lowpass:4000Hz`, `clip:6dB`; units may be left out.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(\w+):(-?\d+(?:\.\d+)?)(dB|Hz)?", text)
    if not found or found[1] not in get_args(Kind) or found[3] not in (None, _UNITS[found[1]]):
        raise UsageError(f"--corrupt {text}: expected noise:10dB, gain:-20dB, lowpass:4000Hz or clip:6dB")
    return Corruption(found[1], float(found[2]))


def _gain(decibels: float) -> float:
    return 10 ** (decibels / 20)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
