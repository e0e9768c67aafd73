"""Logits of all tokens, then optax's cross-entropy: defines the result on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from alm_jax.kernels.linear_cross_entropy.head import Head


def linear_cross_entropy(
    head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weight: jax.Array
) -> jax.Array:
    """See `api.linear_cross_entropy`; differentiated by JAX."""
    nll = optax.softmax_cross_entropy_with_integer_labels(head.logits(hidden, kernel.astype(hidden.dtype)), targets)
    return jnp.sum(nll * weight)
