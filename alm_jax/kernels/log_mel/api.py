"""Log-mel filterbanks: picks an implementation by capability; a named one never falls back."""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np

from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import platform
from alm_jax.kernels.log_mel import reference

Implementation = Literal["auto", "reference", "pallas_tpu"]


def log_mel(
    waves: jax.Array,
    window: np.ndarray,
    filters: np.ndarray,
    *,
    hop: int,
    n_fft: int,
    rows: int,
    floor: float,
    preemphasis: float | None = None,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> jax.Array:
    """Natural logarithm of the mel energies of frames, float32 [B, rows, mels]. Not differentiable on TPUs.

    Args:
        waves: float32 [B, n]; frame i begins at sample i * hop, and sees zeros past n.
        window: [length] float64, of one frame. n_fft: samples of the DFT, a multiple of 8, at least the length.
        filters: [n_fft / 2 + 1, mels], of the power spectrum. floor: the least energy.
        preemphasis: if not None, each frame first loses its mean, and then each sample this share of the one before it
            (the first, of itself), as Kaldi's frames do.
        implementation: `auto` takes `pallas_tpu` on a TPU where it can, else the reference.
        interpret: run Pallas kernels by the interpreter, on any platform.

    Raises:
        ConfigError: the named implementation cannot do this call; the message says why.
    """
    options = {"hop": hop, "n_fft": n_fft, "rows": rows, "floor": floor, "preemphasis": preemphasis}
    name = ("pallas_tpu" if platform() == "tpu" else "reference") if implementation == "auto" else implementation
    if name == "pallas_tpu":
        from alm_jax.kernels.log_mel import pallas_tpu  # Pallas is only imported where it is used

        why = pallas_tpu.refusal(waves, window, filters, hop, n_fft, rows, interpret)
        if why is None:
            return pallas_tpu.log_mel(waves, window, filters, **options, interpret=interpret)
        if implementation != "auto":
            raise ConfigError(f"log-mel {name} cannot do this call: {why}")
    return reference.log_mel(waves, window, filters, **options)
