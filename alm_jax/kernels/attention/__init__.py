"""Scaled dot-product attention with segment ids, grouped keys and a decode form over a KV cache."""

from alm_jax.kernels.attention.api import attention, decode_attention

__all__ = ["attention", "decode_attention"]
