"""Attention of new tokens over a key-value cache."""

from alm_jax.kernels.decode_attention.api import Implementation, decode_attention

__all__ = ["Implementation", "decode_attention"]
