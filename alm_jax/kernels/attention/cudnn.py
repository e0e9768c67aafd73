"""cuDNN flash attention through `jax.nn.dot_product_attention`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alm_jax.core.mesh import constrain, platform
from alm_jax.kernels.attention.reference import segment_mask
from alm_jax.kernels.attention.rows import whole_rows


def refusal(q: jax.Array, k: jax.Array, prefix: int = 0, bias: jax.Array | None = None) -> str | None:
    """Why cuDNN cannot do this call, in words; None if it can."""
    if platform() != "gpu":
        return f"it needs a GPU, the platform is {platform()}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, got {q.dtype}"
    if q.shape[-1] > 128 or q.shape[-1] % 8:
        return f"it needs a head width of at most 128 and a multiple of 8, got {q.shape[-1]}"
    if prefix:
        return f"it has no causal mask with a prefix, got prefix {prefix}"
    if bias is not None:
        return "it gives no gradient of a bias under a mask"
    return None


def attention(q, k, v, *, q_segment_ids=None, kv_segment_ids=None, causal=False, prefix=0, bias=None, scale=None):
    """See `api.attention`; `prefix` is 0 and `bias` None (`refusal`)."""
    del prefix, bias
    q_axes, kv_axes = whole_rows(q, k)
    q, k, v = constrain(q, *q_axes), constrain(k, *kv_axes), constrain(v, *kv_axes)
    mask = None if q_segment_ids is None else segment_mask(q_segment_ids, kv_segment_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale, implementation="cudnn")
