"""The output head and the cross-entropy of its logits as one operation, without logits of all tokens in memory."""

from alm_jax.kernels.linear_cross_entropy.api import Implementation, linear_cross_entropy

__all__ = ["Implementation", "linear_cross_entropy"]
