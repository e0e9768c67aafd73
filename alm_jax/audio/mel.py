"""Mel filter matrices, computed from their definitions: Kaldi's, Slaney's (librosa, Whisper) and HTK's (torchaudio)."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=16)
def kaldi_mel_filters(num_mels: int, n_fft: int, sample_rate: int, low_freq: float, high_freq: float) -> np.ndarray:
    """`[n_fft // 2 + 1, num_mels]` float64: triangles in the mel domain, mel = 1127 ln(1 + f / 700), peak 1.

    As Kaldi's `MelBanks` (`torchaudio.compliance.kaldi.get_mel_banks`), the Nyquist bin weighs nothing. Narrow
    filters between two bins stay empty (index 3 of 128 at 16 kHz). Frequencies are in Hz.
    """

    def mel(freq):
        return 1127.0 * np.log1p(freq / 700.0)

    step = (mel(high_freq) - mel(low_freq)) / (num_mels + 1)
    left = mel(low_freq) + step * np.arange(num_mels)
    bins = mel(np.arange(n_fft // 2)[:, None] * (sample_rate / n_fft))
    triangles = np.maximum(0.0, np.minimum(bins - left, left + 2 * step - bins) / step)
    return _frozen(np.pad(triangles, ((0, 1), (0, 0))))


@lru_cache(maxsize=16)
def slaney_mel_filters(
    num_mels: int, n_fft: int, sample_rate: int, low_freq: float = 0.0, high_freq: float | None = None
) -> np.ndarray:
    """`[n_fft // 2 + 1, num_mels]` float64: triangles in Hz, each of area 1 (`librosa.filters.mel`).

    Slaney's scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 steps a factor of 6.4). Frequencies
    are in Hz; `high_freq` is Nyquist by default.
    """
    knee_hz, hz_per_mel, log_step = 1000.0, 200.0 / 3.0, np.log(6.4) / 27.0
    knee = knee_hz / hz_per_mel

    def mel(freq):
        return freq / hz_per_mel if freq < knee_hz else knee + np.log(freq / knee_hz) / log_step

    mels = np.linspace(mel(low_freq), mel(sample_rate / 2 if high_freq is None else high_freq), num_mels + 2)
    edges = np.where(mels < knee, mels * hz_per_mel, knee_hz * np.exp(log_step * (mels - knee)))
    return _frozen(_triangles(edges, n_fft, sample_rate) * (2.0 / (edges[2:] - edges[:-2])))


@lru_cache(maxsize=16)
def htk_mel_filters(num_mels: int, n_fft: int, sample_rate: int, low_freq: float, high_freq: float) -> np.ndarray:
    """`[n_fft // 2 + 1, num_mels]` float64: triangles in Hz of peak 1, evenly spaced in mel = 2595 log10(1 + f / 700).

    The default of `torchaudio.transforms.MelSpectrogram`. Frequencies are in Hz.
    """
    mels = np.linspace(*(2595.0 * np.log10(1.0 + freq / 700.0) for freq in (low_freq, high_freq)), num_mels + 2)
    return _frozen(_triangles(700.0 * (10.0 ** (mels / 2595.0) - 1.0), n_fft, sample_rate))


def _triangles(edges: np.ndarray, n_fft: int, sample_rate: int) -> np.ndarray:
    """`[n_fft // 2 + 1, n - 2]`: from each of n frequencies in Hz up to 1 at the next and down to the one after it."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)
    return np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
