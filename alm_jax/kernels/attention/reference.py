"""Attention written with `jax.nn.dot_product_attention`: defines the result on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def segment_mask(q_segment_ids: jax.Array, kv_segment_ids: jax.Array) -> jax.Array:
    """bool [B, 1, L, S]: the key's id is not 0 and equals the query's."""
    same = q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
    return (same & (kv_segment_ids != 0)[:, None, :])[:, None]


def attention(q, k, v, *, q_segment_ids=None, kv_segment_ids=None, causal=False, prefix=0, bias=None, scale=None):
    """See `api.attention`. A query that sees no key gets the mean of all values, as in the published PyTorch code."""
    mask = None
    if q_segment_ids is not None:
        mask = segment_mask(q_segment_ids, kv_segment_ids)
    if causal:
        lower = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None]
        lower |= jnp.arange(k.shape[1]) < prefix
        mask = lower if mask is None else mask & lower
    bias = bias[None] if bias is not None and bias.ndim == 3 else bias
    return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, implementation="xla")
