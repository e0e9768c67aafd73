"""Decode attention: picks an implementation by capability; a named one never falls back."""

from __future__ import annotations

from typing import Literal

import jax

from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import platform
from alm_jax.kernels.decode_attention import reference

Implementation = Literal["auto", "reference", "pallas_tpu"]


def decode_attention(
    q: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    *,
    layer: jax.Array | int,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    scale: float | None = None,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> jax.Array:
    """Attention of a few new tokens over a cache and, causally, over themselves. Not differentiable.

    Args:
        q: [B, L, H, D]. k_new, v_new: [B, L, K, D], where K divides H (grouped-query attention).
        k_cache, v_cache: [layers, B, K, S, D] of all layers; `layer` says which is read. A kernel reads it where it
            lies, while a slice given to it would be copied first.
        q_segment_ids: int [B, L]. kv_segment_ids: int [B, S] of the cache; 0 marks slots not written or padded.
        scale: of the scores; D**-0.5 by default.
        implementation: `auto` takes `pallas_tpu` on a TPU where it can, else the reference.
        interpret: run Pallas kernels by the interpreter, on any platform.

    Returns:
        [B, L, H, D] in the dtype of `q`.

    Raises:
        ConfigError: the named implementation cannot do this call; the message says why.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    ids = {"layer": layer, "q_segment_ids": q_segment_ids, "kv_segment_ids": kv_segment_ids, "scale": scale}
    name = ("pallas_tpu" if platform() == "tpu" else "reference") if implementation == "auto" else implementation
    if name == "pallas_tpu":
        from alm_jax.kernels.decode_attention import pallas_tpu  # Pallas is only imported where it is used

        why = pallas_tpu.refusal(q, k_cache, interpret)
        if why is None:
            return pallas_tpu.decode_attention(q, k_new, v_new, k_cache, v_cache, **ids, interpret=interpret)
        if implementation != "auto":
            raise ConfigError(f"decode attention {name} cannot do this call: {why}")
    return reference.decode_attention(q, k_new, v_new, k_cache, v_cache, **ids)
