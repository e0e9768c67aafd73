"""Clips made of others for tests whose truth is known by construction: one after another, and shifted in pitch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alm_jax.audio.io import load_audio, write_audio
from alm_jax.audio.resample import resample

RATE = 16000
_FFT, _HOP = 1024, 256
_SILENCE = 10 ** (-60 / 20)  # of the highest peak: what is quieter at the ends is cut off


def one_after_another(paths: Sequence[Path], longest: float, pause: float = 0.5) -> np.ndarray:
    """Samples [n] at `RATE` of clips that do not overlap, each without the silence around it and cut to `longest`."""
    parts = [_trimmed(load_audio(path, sample_rate=RATE)[0])[: int(longest * RATE)] for path in paths]
    silence = np.zeros(int(pause * RATE), np.float32)
    return np.concatenate([piece for part in parts for piece in (part, silence)][:-1])


def shift_pitch(samples: np.ndarray, semitones: float) -> np.ndarray:
    """The same clip [n] higher or lower, as long: slowed or hastened by a phase vocoder, and resampled."""
    if not semitones or len(samples) < _FFT:
        return np.asarray(samples, np.float32)
    # Read as if it had been recorded at another rate; in steps of 1 / 160 (11 cents) its filter stays small.
    rate = round(160 * 2 ** (semitones / 12)) * RATE // 160
    shifted = resample(_stretched(np.asarray(samples, np.float64), rate / RATE).astype(np.float32), rate, RATE)
    out = np.zeros(len(samples), np.float32)
    out[: min(len(out), len(shifted))] = shifted[: len(out)]
    return out


def write_clip(path: Path, samples: np.ndarray) -> None:
    """Write a clip, over one that other clips or another seed made; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    peak = float(np.abs(samples).max(initial=0.0))
    write_audio(path, samples / max(peak, 1.0), RATE)


def _stretched(samples: np.ndarray, factor: float) -> np.ndarray:
    """Samples `factor` times as long in the same pitch (phase vocoder of Flanagan and Golden 1966)."""
    window = np.hanning(_FFT + 1)[:-1]
    padded = np.pad(samples, (_FFT // 2, _FFT))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * window)
    times = np.arange(0, len(spectrum) - 1, 1 / factor)
    at, part = times.astype(int), (times % 1)[:, None]
    size = (1 - part) * np.abs(spectrum[at]) + part * np.abs(spectrum[at + 1])
    turned = 2 * np.pi * _HOP * np.arange(_FFT // 2 + 1) / _FFT
    step = np.angle(spectrum[at + 1]) - np.angle(spectrum[at]) - turned
    step = turned + (step + np.pi) % (2 * np.pi) - np.pi
    phase = np.angle(spectrum[0]) + np.concatenate([np.zeros((1, step.shape[1])), np.cumsum(step[:-1], 0)])
    pieces = np.fft.irfft(size * np.exp(1j * phase)) * window
    out, weight = np.zeros((2, _HOP * (len(pieces) - 1) + _FFT))
    for i, piece in enumerate(pieces):
        out[i * _HOP : i * _HOP + _FFT] += piece
        weight[i * _HOP : i * _HOP + _FFT] += window**2
    return (out / np.maximum(weight, 1e-3))[_FFT // 2 :][: round(len(samples) * factor)]


def _trimmed(samples: np.ndarray) -> np.ndarray:
    """Without silence at the ends; all of a silent clip."""
    loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max(initial=0.0))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples
