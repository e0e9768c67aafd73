"""How a mesh divides attention that needs whole rows on a device."""

from __future__ import annotations

import jax

from alm_jax.core import axes as ax
from alm_jax.core.mesh import indivisible

Axes = tuple[str | None, ...]


def whole_rows(q: jax.Array, k: jax.Array) -> tuple[Axes, Axes]:
    """Logical axes of queries [B, L, H, D] and of keys and values [B, S, K, D].

    Devices that otherwise have parts of a row each take some heads of the whole row (Jacobs et al. 2023, DeepSpeed
    Ulysses). Where they do not divide the heads they repeat one another.
    """
    spread = (ax.BATCH, None, ax.ROW_HEADS, None)
    if indivisible(q.shape, spread) or indivisible(k.shape, spread):
        return (ax.BATCH, None, ax.HEADS, None), (ax.BATCH, None, ax.KV_HEADS, None)
    return spread, spread
