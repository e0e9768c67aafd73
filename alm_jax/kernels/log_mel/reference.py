"""Log-mel in plain JAX, without gathers or the backend's FFT: defines the result on every platform."""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array

RADIX = 8


def log_mel(waves, window, filters, *, hop, n_fft, rows, preemphasis, floor) -> Array:
    """See `api.log_mel`."""
    frames = frame(waves, len(window), hop, rows)
    if preemphasis is not None:
        frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
        frames = frames - preemphasis * jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    power = windowed_power(frames, window, n_fft)
    energy = jnp.matmul(power, jnp.asarray(filters, jnp.float32), precision="highest")
    return jnp.log(jnp.maximum(energy, floor))


def frame(waves: Array, length: int, hop: int, count: int) -> Array:
    """Cut `waves [B, n]` into `[B, count, length]`, frame i from sample `i * hop`; zeros past n."""
    batch, n = waves.shape
    pieces = -(-length // hop)
    total = (count + pieces - 1) * hop
    waves = jnp.pad(waves, ((0, 0), (0, max(0, total - n))))
    shifted = [waves[:, i * hop : (i + count) * hop].reshape(batch, count, hop) for i in range(pieces)]
    return jnp.concatenate(shifted, axis=-1)[..., :length]


def windowed_power(frames: Array, window: np.ndarray, n_fft: int) -> Array:
    """Power spectrum `[..., n_fft // 2 + 1]` of `frames [..., n]` times `window [n]`, zero-padded to `n_fft`.

    A Cooley-Tukey split, n_fft = 8 m, as two small matrix products with constants made in float64. Filterbanks take
    logarithms 80 dB and more below the loudest bin, so rounding counts: one n_fft-long product loses four to ten times
    more, and a TPU's FFT computes its cosines from float32 angles of hundreds of radians.
    """
    first, second = dft_factors(window.tobytes(), n_fft)
    m = n_fft // RADIX
    frames = jnp.pad(frames, [(0, 0)] * (frames.ndim - 1) + [(0, n_fft - frames.shape[-1])])
    frames = frames.reshape(*frames.shape[:-1], RADIX, m)
    partial = jnp.einsum("...ij,ikcj->...kcj", frames, first, precision="highest")  # [..., 8, 2, m]
    bins = jnp.einsum("...kcj,cjdl->...dlk", partial, second, precision="highest")  # bin k + 8 l, d = re, im
    power = bins[..., 0, :, :] ** 2 + bins[..., 1, :, :] ** 2
    return power.reshape(*power.shape[:-2], -1)[..., : n_fft // 2 + 1]


@lru_cache(maxsize=16)
def dft_factors(window: bytes, n_fft: int) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of the windowed DFT, float32; `window` holds float64.

    With sample n = i m + j and bin k + 8 l, exp(-2 pi i n bin / n_fft) is the product of
    `first [i, k, c, j]` = window(n) exp(-2 pi i n k / n_fft), c its real and imaginary part, and
    `second [c, j, d, l]` = exp(-2 pi i j l / m) as a real 2 x 2 rotation from c to d.
    """
    if n_fft % RADIX:
        raise ValueError(f"n_fft must be a multiple of {RADIX}, got {n_fft}")
    m = n_fft // RADIX
    taper = np.frombuffer(window)
    taper = np.pad(taper, (0, n_fft - len(taper))).reshape(RADIX, 1, 1, m)
    n = np.arange(n_fft).reshape(RADIX, 1, m)
    angle = 2 * np.pi / n_fft * (n * np.arange(RADIX)[:, None] % n_fft)
    first = np.stack([np.cos(angle), -np.sin(angle)], axis=2) * taper
    angle = 2 * np.pi / m * (np.outer(np.arange(m), np.arange(m // 2 + 1)) % m)
    cos, sin = np.cos(angle), np.sin(angle)
    second = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)])
    return first.astype(np.float32), second.astype(np.float32)
