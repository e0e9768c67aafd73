"""The log-mel kernel in the front ends that use it, against their float64 form; Pallas by the interpreter."""

from functools import partial

import jax
import numpy as np
import pytest

from alm_jax.audio import KaldiFbank, LibrosaLogMel, WhisperLogMel
from alm_jax.core.errors import ConfigError
from alm_jax.kernels.log_mel import log_mel, pallas_tpu

TOLERANCE = 5e-3  # of filterbanks (tests/audio/test_frontend.py)


def _waves():
    """Noise, and a loud tone whose quiet bins magnify rounding; the second is shorter."""
    rng, t = np.random.default_rng(0), np.arange(5000) / 16000
    tone = 0.99 * np.sin(2 * np.pi * 3000 * t) + 0.01
    return np.float32([0.1 * rng.normal(size=5000), tone]), np.array([5000, 4001])


@pytest.mark.parametrize(
    "front_end",
    [
        KaldiFbank(frames=40, std=1.0),
        KaldiFbank(sample_rate=8000, frames=None, preemphasis=0.0, num_mels=40, gain=2.0**15, std=1.0),
        WhisperLogMel(frames=20, padding="mel"),
        LibrosaLogMel(16000, None, n_fft=512, hop=160, high_freq=8000.0, seconds=0.4, padding="pad"),
    ],
    ids=lambda front_end: f"{type(front_end).__name__}-{front_end.sample_rate}",
)
def test_front_ends_on_the_kernel(front_end, monkeypatch):
    """Several blocks of frames, of which the last is not full; rows shorter than the batch."""
    monkeypatch.setattr(pallas_tpu, "_FRAMES", (16,))
    waves, lengths = _waves()
    tolerance = TOLERANCE * (10 / np.log(10) if isinstance(front_end, LibrosaLogMel) else 1)  # decibel
    found = jax.jit(partial(front_end.jax, implementation="pallas_tpu", interpret=True))(waves, lengths)
    for row, wave, length in zip(np.asarray(found), waves, lengths):
        alone = front_end.numpy(wave[:length])
        np.testing.assert_allclose(row[: len(alone)], alone, atol=tolerance)


def test_refusals():
    waves = np.zeros((1, 4000), np.float32)

    def run(length=400, hop=160, n_fft=512, rows=10, **options):
        filters = np.ones((n_fft // 2 + 1, 80))
        options = {"hop": hop, "n_fft": n_fft, "rows": rows, "floor": 1e-10, **options}
        return log_mel(waves, np.ones(length), filters, implementation="pallas_tpu", **options)

    with pytest.raises(ConfigError, match="log-mel pallas_tpu cannot do this call: it needs a TPU"):
        run()
    with pytest.raises(ConfigError, match="400 samples reach over more than 9 hops of 40"):
        run(hop=40, interpret=True)
    with pytest.raises(ConfigError, match="a DFT of 4096 samples and a block of frames do not fit the 12 MiB"):
        run(length=4096, hop=1024, n_fft=4096, interpret=True)
    with pytest.raises(ConfigError, match="there are no frames"):
        run(rows=0, interpret=True)
