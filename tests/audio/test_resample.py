"""The resampler against torchaudio's definition, written out as a plain strided convolution, and recorded outputs."""

from math import ceil, gcd

import numpy as np
import pytest
import soundfile

from alm_jax.audio.resample import filter_reach, resample
from alm_jax.core.errors import AudioError


def windowed_sinc(x: np.ndarray, from_rate: int, to_rate: int, dtype) -> np.ndarray:
    """torchaudio.functional.resample with defaults: one filter for each output phase, applied at stride `orig`."""
    common = gcd(from_rate, to_rate)
    orig, new = from_rate // common, to_rate // common
    base = min(orig, new) * 0.99
    width = ceil(6 * orig / base)
    offsets = np.arange(-width, width + orig, dtype=dtype) / dtype(orig)
    t = (np.arange(0, -new, -1, dtype=dtype) / dtype(new))[:, None] + offsets
    t = np.clip(t * dtype(base), -6, 6)
    window = np.cos(t * dtype(np.pi / 12)) ** 2
    kernels = np.sinc(t.astype(np.float64)) * window * (base / orig)
    padded = np.pad(x.astype(np.float64), (width, width + orig))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1])[::orig]
    return (blocks @ kernels.T).reshape(-1)[: ceil(new * len(x) / orig)]


PAIRS = [(44100, 16000), (8000, 16000), (48000, 16000), (22050, 32000), (11025, 16000), (192000, 16000), (16000, 44100)]


@pytest.mark.parametrize("from_rate, to_rate", PAIRS)
@pytest.mark.parametrize("length", [1, 37, 3001])
def test_is_the_published_windowed_sinc(from_rate, to_rate, length):
    x = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)
    y = resample(x, from_rate, to_rate)
    assert y.dtype == np.float32 and y.shape == (ceil(length * to_rate / from_rate),)
    # float32 sums of up to 150 products of size 1
    np.testing.assert_allclose(y, windowed_sinc(x, from_rate, to_rate, np.float32), atol=2e-6)
    # torchaudio's float32 times are off by up to 1e-6, and a sinc crosses zero at a slope of about one
    np.testing.assert_allclose(y, windowed_sinc(x, from_rate, to_rate, np.float64), atol=1e-4)


def test_reproduces_a_tone_away_from_the_ends():
    tone = lambda rate: np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    y = resample(tone(44100).astype(np.float32), 44100, 16000)
    # a six-crossing Hann sinc has a pass-band ripple of a few 1e-4
    np.testing.assert_allclose(y[100:-100], tone(16000)[100:-100], atol=2e-3)


def test_works_on_the_last_axis_and_on_rates_without_a_common_factor():
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 500)).astype(np.float32)
    y = resample(x, 44101, 16000)
    assert y.shape == (2, 3, ceil(500 * 16000 / 44101))
    np.testing.assert_array_equal(y[1, 2], resample(x[1, 2], 44101, 16000))


def test_equal_rates_and_empty_input_pass_through():
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(resample(x, 16000, 16000), x)
    assert resample(np.zeros(0), 8000, 16000).shape == (0,)


def test_reach_covers_every_sample_the_filter_reads():
    for from_rate, to_rate in PAIRS:
        reach = filter_reach(from_rate, to_rate)
        n, cut = 4000, 2000
        x = np.random.default_rng(2).uniform(-1, 1, n).astype(np.float32)
        keep = cut * to_rate // from_rate
        whole, part = resample(x, from_rate, to_rate), resample(x[: cut + reach], from_rate, to_rate)
        np.testing.assert_allclose(part[:keep], whole[:keep], atol=1e-7)


@pytest.mark.parametrize("rate", [0, -16000, 44100.5])
def test_rejects_a_rate_that_is_no_count(rate):
    with pytest.raises(AudioError, match="positive whole number"):
        resample(np.zeros(10, np.float32), rate, 16000)


@pytest.mark.golden
def test_equals_the_recorded_torchaudio_output(golden_ltu):
    x, rate = soundfile.read(golden_ltu / "fbank/stereo_1s_44k1.wav", dtype="float32", always_2d=True)
    truth = np.load(golden_ltu / "fbank/fbank_official.npz")["stereo_1s_44k1__resampled16k"][0]
    np.testing.assert_allclose(resample(x[:, 0], rate, 16000), truth, atol=5e-7)  # float32 rounding of values near 0.5
