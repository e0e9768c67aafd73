"""Rotary position embedding (Su et al. 2021) in LLaMA's half-split form, and its stretched forms for long contexts."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class LinearRope:
    """All frequencies divided by `factor` (Chen et al. 2023; `linear` in `transformers`)."""

    factor: float

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        """float32 [width / 2] -> the same."""
        return frequencies / np.float32(self.factor)


@dataclass(frozen=True)
class Llama3Rope:
    """Slow frequencies divided by `factor`, fast ones kept, those between blended (`llama3` in `transformers`).

    Attributes:
        factor: 8 in Llama 3.1, 32 in 3.2.
        low_freq_factor, high_freq_factor: frequencies of fewer turns than the first within the original context are
            slow, of more than the second fast.
        original_positions: length of that context.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        """float32 [width / 2] -> the same."""
        turns = self.original_positions * frequencies / (2 * np.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0, dtype=np.float32)
        return (1 - kept) * frequencies / np.float32(self.factor) + kept * frequencies


RopeScaling = LinearRope | Llama3Rope


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position of each pair of coordinates, float32 [width / 2], rounded as PyTorch does."""
    frequencies = np.float32(1.0) / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    return frequencies if scaling is None else scaling.stretch(frequencies)


def rotary_angles(
    positions: jax.Array, width: int, theta: float = 10000.0, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32 [B, L, 1, width], of `positions` int [B, L]."""
    angles = positions[..., None, None].astype(jnp.float32) * rotary_frequencies(width, theta, scaling)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate heads x [B, L, H, width]; coordinate i is paired with i + width/2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos + turned * sin).astype(x.dtype)
