"""Attention inside windows with a learnt bias for relative positions, shifted or not (Swin, HTS-AT)."""

from alm_jax.kernels.window_attention.api import Implementation, window_attention

__all__ = ["Implementation", "window_attention"]
