"""Log-mel filterbanks of waveforms as one operation: framing, window, DFT, filters and logarithm."""

from alm_jax.kernels.log_mel.api import Implementation, log_mel

__all__ = ["Implementation", "log_mel"]
