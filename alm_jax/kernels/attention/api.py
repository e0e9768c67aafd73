"""Attention: picks an implementation by capability; a named one never falls back, `auto` ends in the reference."""

from __future__ import annotations

from typing import Any, Literal

import jax

from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import platform
from alm_jax.kernels.attention import cudnn, reference

Implementation = Literal["auto", "reference", "splash", "cudnn"]
_FAST = {"tpu": "splash", "gpu": "cudnn"}  # by platform


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    causal: bool = False,
    prefix: int = 0,
    bias: jax.Array | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Softmax attention with float32 scores.

    Args:
        q: [B, L, H, D]. k, v: [B, S, K, D], where K divides H (grouped-query attention).
        q_segment_ids, kv_segment_ids: int [B, L] and [B, S], both or none; a key is seen iff its id is not 0 and equals
            the query's.
        causal: query i sees keys 0..i only (L = S). prefix: the first keys, which every query sees all the same.
        bias: [H, L, S] or [B, H, L, S], added to the scaled scores (positions in a window).
        scale: of the scores; D**-0.5 by default.

    Returns:
        [B, L, H, D] in the dtype of `q`.

    Raises:
        ConfigError: the named implementation cannot do this call; the message says why.
    """
    name = _FAST.get(platform(), "reference") if implementation == "auto" else implementation
    chosen = _module(name)
    why = None if chosen is reference else chosen.refusal(q, k, prefix, bias)
    if why and implementation != "auto":
        raise ConfigError(f"attention {name} cannot do this call: {why}")
    chosen = reference if why else chosen
    masks = {"q_segment_ids": q_segment_ids, "kv_segment_ids": kv_segment_ids, "causal": causal, "prefix": prefix}
    return chosen.attention(q, k, v, bias=bias, scale=scale, **masks)


def _module(name: str) -> Any:
    """Of an implementation; Pallas is only imported where it is used."""
    if name == "splash":
        from alm_jax.kernels.attention import splash

        return splash
    return {"reference": reference, "cudnn": cudnn}[name]
