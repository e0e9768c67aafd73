"""Corruptions by what they do to levels and frequencies."""

import numpy as np
import pytest

from alm_jax.audio.io import write_audio
from alm_jax.core.errors import UsageError
from alm_jax.eval.corrupt import Corruption, read_corruption

RATE = 16000
TIME = np.arange(RATE) / RATE
TONES = 0.4 * np.sin(2 * np.pi * 500 * TIME) + 0.4 * np.sin(2 * np.pi * 5000 * TIME)


def level(samples, hertz):
    return 2 * np.abs(np.fft.rfft(samples))[hertz] / len(samples)  # bins of 1 Hz


def test_noise():
    worse = Corruption("noise", 10.0).apply(TONES, RATE, "a/b.wav")
    noise = worse - TONES
    assert 10 * np.log10(np.mean(TONES**2) / np.mean(noise**2)) == pytest.approx(10, abs=1e-3)  # float32 samples
    assert np.array_equal(worse, Corruption("noise", 10.0).apply(TONES, RATE, "a/b.wav"))
    assert not np.array_equal(worse, Corruption("noise", 10.0).apply(TONES, RATE, "a/c.wav"))


def test_gain():
    assert Corruption("gain", -20.0).apply(TONES, RATE, "") == pytest.approx(TONES / 10, abs=1e-6)
    assert np.abs(Corruption("gain", 20.0).apply(TONES, RATE, "")).max() == 1.0


def test_low_pass():
    worse = Corruption("lowpass", 1000.0).apply(TONES, RATE, "")
    assert level(worse, 500) == pytest.approx(0.4, rel=0.01) and level(worse, 5000) < 1e-4
    assert np.array_equal(Corruption("lowpass", 8000.0).apply(TONES, RATE, ""), TONES.astype(np.float32))


def test_clipping():
    worse = Corruption("clip", 6.0).apply(TONES, RATE, "")
    assert np.abs(worse).max() == pytest.approx(np.abs(TONES).max() * 10 ** (-6 / 20))
    quiet = np.abs(TONES) < 0.3
    assert worse[quiet] == pytest.approx(TONES[quiet], abs=1e-6)


@pytest.mark.parametrize("kind", ["noise", "gain", "lowpass", "clip"])
def test_silence_and_nothing(kind):
    assert not Corruption(kind, 10.0).apply(np.zeros(100), RATE, "").any()
    assert len(Corruption(kind, 10.0).apply(np.zeros(1), RATE, "")) == 1


def test_files_and_names(tmp_path):
    write_audio(tmp_path / "a.wav", TONES, RATE)
    corruption = read_corruption("gain:-6")
    assert str(corruption) == "gain:-6dB" and corruption == read_corruption("gain:-6.0dB")
    samples, rate = corruption(tmp_path / "a.wav")
    assert rate == RATE and samples == pytest.approx(TONES * 10 ** (-6 / 20), abs=1e-4)  # 16 bits
    assert read_corruption("lowpass:4000Hz").slug == "lowpass4000Hz"


@pytest.mark.parametrize("text", ["noise", "hum:10", "noise:10Hz", "lowpass:0Hz", "clip:-3dB", "noise:x"])
def test_what_is_refused(text):
    with pytest.raises(UsageError, match="--corrupt"):
        read_corruption(text)
