"""Window attention as attention with segment ids and a bias: defines the result on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alm_jax.kernels.attention import attention


def window_attention(q, k, v, bias, regions, *, scale) -> jax.Array:
    """See `api.window_attention`; differentiated by JAX."""
    ids = None if regions is None else jnp.tile(regions, (q.shape[0] // regions.shape[0], 1))
    return attention(q, k, v, bias=bias, q_segment_ids=ids, kv_segment_ids=ids, scale=scale)
