"""Patches of a spectrogram."""

from __future__ import annotations

import jax
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers import initializers as init


class PatchEmbed(nnx.Module):
    """A linear layer on every `patch` x `patch` square of a spectrogram; squares overlap where the stride is less.

    [B, frames, mels] -> [B, T, F, dim]. The kernel is `[patch * patch, dim]`, the values of a square frame by frame.

    Args:
        stride: from one square to the next, along (time, frequency).
    """

    def __init__(self, patch: int, stride: tuple[int, int], dim: int, key: jax.Array, *, bias: bool = True):
        self.kernel = init.normal(key, (patch**2, dim), (ax.PATCH, ax.EMBED))
        self.bias = init.zeros((dim,), (ax.EMBED,)) if bias else None
        self.patch, self.stride = patch, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype).reshape(self.patch, self.patch, 1, -1)
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[..., None], kernel, self.stride, "VALID", dimension_numbers=layout)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def patch_grid(frames: int, mels: int, patch: int, stride: tuple[int, int]) -> tuple[int, int]:
    """How many squares fit along (time, frequency)."""
    return (frames - patch) // stride[0] + 1, (mels - patch) // stride[1] + 1
