"""Window attention: picks an implementation by capability; a named one never falls back."""

from __future__ import annotations

from typing import Literal

import jax

from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import platform
from alm_jax.kernels.window_attention import reference

Implementation = Literal["auto", "reference", "pallas_tpu"]


def window_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    regions: jax.Array | None = None,
    *,
    scale: float | None = None,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention among the L places of each of N windows, with float32 scores.

    Args:
        q, k, v: [N, L, H, D]; the windows of a picture are beside one another.
        bias: [H, L, L], added to the scaled scores of query and key (Liu et al. 2021, equation 4).
        regions: int [G, L] above 0, of the G windows of a picture; a place sees those of its own region alone (the mask
            of shifted windows). None: it sees all.
        scale: of the scores; D**-0.5 by default.
        implementation: `auto` takes `pallas_tpu` on a TPU where it can, else the reference.
        interpret: run Pallas kernels by the interpreter, on any platform.

    Returns:
        [N, L, H, D] in the dtype of `q`.

    Raises:
        ConfigError: the named implementation cannot do this call; the message says why.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = ("pallas_tpu" if platform() == "tpu" else "reference") if implementation == "auto" else implementation
    if name == "pallas_tpu":
        from alm_jax.kernels.window_attention import pallas_tpu  # Pallas is only imported where it is used

        why = pallas_tpu.refusal(q, regions, interpret)
        if why is None:
            return pallas_tpu.window_attention(scale, interpret, q, k, v, bias, regions)
        if implementation != "auto":
            raise ConfigError(f"window attention {name} cannot do this call: {why}")
    return reference.window_attention(q, k, v, bias, regions, scale=scale)
