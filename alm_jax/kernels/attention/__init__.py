"""Scaled dot-product attention with segment ids and grouped keys."""

from alm_jax.kernels.attention.api import attention

__all__ = ["attention"]
