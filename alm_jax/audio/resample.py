"""Sample-rate conversion: torchaudio's windowed sinc, the resampler that published pipelines were trained with."""

from functools import lru_cache
from math import ceil, gcd

import numpy as np

from alm_jax.core.errors import AudioError

LOWPASS_WIDTH = 6  # zero crossings of the sinc on each side
ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency


def filter_reach(from_rate: int, to_rate: int) -> int:
    """Number of input samples on each side of an output sample that the filter reads; 0 where rates agree."""
    if from_rate == to_rate:
        return 0
    return ceil(LOWPASS_WIDTH * from_rate / (ROLLOFF * min(from_rate, to_rate)))


@lru_cache(maxsize=16)
def sinc_filter(up: int, down: int) -> np.ndarray:
    """Low-pass FIR `[2 k + 1]` float32, centred, on the grid of `up` times the input rate; `up`, `down` coprime.

    Tap p weighs input sample s in the output of phase i where p = i down - s up. torchaudio computes its kernel from
    s / down - i / up in float32, which moves the output by 5e-6; the same arithmetic here gives the same taps.
    """
    cutoff = ROLLOFF * min(up, down)
    half = ceil(LOWPASS_WIDTH * up * down / cutoff)
    tap = np.arange(-half, half + 1)
    phase = tap * pow(down, -1, up) % up
    sample = (phase * down - tap) // up
    t = sample.astype(np.float32) / np.float32(down) - phase.astype(np.float32) / np.float32(up)
    t = np.clip(t * cutoff, -LOWPASS_WIDTH, LOWPASS_WIDTH)
    hann = np.cos(t * np.pi / LOWPASS_WIDTH / 2) ** 2
    t = t * np.pi
    sinc = np.divide(np.sin(t), t, out=np.ones_like(t), where=t != 0)
    fir = sinc * (hann * (cutoff / down))
    fir.setflags(write=False)
    return fir


def resample(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `x [..., n]` along its last axis to `[..., ceil(n * to_rate / from_rate)]`, float32.

    Equals `torchaudio.functional.resample` with its defaults (Hann window, lowpass width 6, rolloff 0.99),
    computed as one polyphase FIR. Raises `AudioError` for a rate that is not a positive integer.
    """
    for rate in (from_rate, to_rate):
        if rate <= 0 or rate != int(rate):
            raise AudioError(f"sample rate {rate!r}: expected a positive whole number of Hz")
    x = np.asarray(x, np.float32)
    if from_rate == to_rate or x.shape[-1] == 0:
        return x
    from scipy.signal import resample_poly  # here, because importing it takes longer than importing jax

    common = gcd(int(from_rate), int(to_rate))
    up, down = int(to_rate) // common, int(from_rate) // common
    # SciPy multiplies a given filter by `up`; torchaudio's gain is already right.
    return resample_poly(x, up, down, axis=-1, window=sinc_filter(up, down) / up).astype(np.float32, copy=False)
