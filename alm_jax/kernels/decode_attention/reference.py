"""Decode attention in plain JAX: defines the result on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alm_jax.kernels.attention.reference import segment_mask


def decode_attention(q, k_new, v_new, k_cache, v_cache, *, layer, q_segment_ids, kv_segment_ids, scale) -> jax.Array:
    """See `api.decode_attention`. The cache is read in place: only the scores, not the keys, are joined."""
    batch, length, heads, width = q.shape
    k_cache, v_cache = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (k_cache, v_cache))
    _, groups, slots, _ = k_cache.shape
    q = q.reshape(batch, length, groups, heads // groups, width)
    scores_cache = jnp.einsum("blgrd,bgsd->bgrls", q, k_cache, preferred_element_type=jnp.float32)
    scores_new = jnp.einsum("blgrd,bsgd->bgrls", q, k_new, preferred_element_type=jnp.float32)
    seen = segment_mask(q_segment_ids, kv_segment_ids)[:, :, None]
    scores_cache = jnp.where(seen, scores_cache * scale, jnp.finfo(jnp.float32).min)
    causal = jnp.tril(jnp.ones((length, length), bool))
    scores_new = jnp.where(causal, scores_new * scale, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(jnp.concatenate([scores_cache, scores_new], axis=-1), axis=-1).astype(q.dtype)
    out = jnp.einsum("bgrls,bgsd->blgrd", weights[..., :slots], v_cache)
    out += jnp.einsum("bgrls,bsgd->blgrd", weights[..., slots:], v_new)
    return out.reshape(batch, length, heads, width)
