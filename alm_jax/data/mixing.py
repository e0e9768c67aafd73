"""Signal helpers of the scene composer: levels and extent of a sound, coloured noise, loops."""

import numpy as np

# Power spectrum ~ 1/f^k.
NOISES = {"white noise": 0.0, "pink noise": 1.0, "brown noise": 2.0}

_FRAMES_PER_SECOND = 100  # levels are measured in frames of 10 ms
_AUDIBLE_DB = 35.0  # a sound reaches as far as its frames are within this of its loudest one
_PAUSE_DB, _PAUSE_FRAMES = 25.0, 8  # what parts two bursts: frames this far below the loudest, more of them than this


def amplitude(db: float) -> float:
    """Factor on samples that a gain in dB is."""
    return 10 ** (db / 20)


def extent(samples: np.ndarray, rate: int, floor_db: float = -np.inf) -> tuple[int, int]:
    """First and one past the last sample of what is audible, at frame borders; nothing below `floor_db` is."""
    levels = _levels(samples, rate)
    floor = min(max(levels.max() - _AUDIBLE_DB, floor_db), levels.max())
    audible = np.flatnonzero(levels >= floor)
    frame = rate // _FRAMES_PER_SECOND
    return int(audible[0]) * frame, min(int(audible[-1] + 1) * frame, len(samples))


def bursts(samples: np.ndarray, rate: int) -> int:
    """Number of stretches of sound that pauses part, as the barks of a dog."""
    levels = _levels(samples, rate)
    loud = np.flatnonzero(levels >= levels.max() - _PAUSE_DB)
    return 1 + int(np.sum(np.diff(loud) > _PAUSE_FRAMES))


def centroid(samples: np.ndarray, rate: int) -> float:
    """Mean frequency in Hz, weighted by power."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((power * np.fft.rfftfreq(len(samples), 1 / rate)).sum() / power.sum())


def noise(exponent: float, total: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose power falls as 1/f^exponent; float64 [total]."""
    spectrum = np.fft.rfft(rng.standard_normal(total))
    frequencies = np.fft.rfftfreq(total, 1 / rate)
    spectrum *= np.maximum(frequencies, 20.0) ** (-exponent / 2)  # flat below 20 Hz: no slow drift
    return np.fft.irfft(spectrum, total)


def loop(samples: np.ndarray, total: int, rate: int) -> np.ndarray:
    """Repeats a clip to at least `total` samples, its end faded into its start over up to 50 ms, at equal power."""
    fade = min(round(0.05 * rate), len(samples) // 4)
    angle = np.linspace(0, np.pi / 2, fade, endpoint=False)
    body = samples[: len(samples) - fade].astype(np.float64)
    body[:fade] = body[:fade] * np.sin(angle) + samples[len(samples) - fade :] * np.cos(angle)
    return np.tile(body, -(-total // len(body)))


def _levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """RMS in dB of each frame, the last one padded."""
    frame = rate // _FRAMES_PER_SECOND
    padded = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    return 10 * np.log10(np.mean(padded.astype(np.float64) ** 2, axis=1) + 1e-20)
