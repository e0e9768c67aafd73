"""The decoder's key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

_BUCKET = 64  # cache sizes are rounded up to it, so that few decode steps are ever compiled


def cache_slots(length: int) -> int:
    """Slots of a cache for rows of `length` positions."""
    return -(-length // _BUCKET) * _BUCKET


@jax.tree_util.register_dataclass
@dataclass
class KVCache:
    """Keys and values of all layers, and which slots may be seen.

    Attributes:
        k, v: [layers, B, kv_heads, S, head_dim]: a head's slots lie beside one another.
        segment_ids: int32 [B, S]; 0 marks padding and slots not written yet.
    """

    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array

    @classmethod
    def filled(cls, k: jax.Array, v: jax.Array, segment_ids: jax.Array, slots: int) -> KVCache:
        """A cache of `slots` slots that begins with k, v [layers, B, L, kv_heads, head_dim]."""
        room = slots - k.shape[2]
        wide = lambda x: jnp.pad(x.swapaxes(2, 3), ((0, 0), (0, 0), (0, 0), (0, room), (0, 0)))
        return cls(wide(k), wide(v), jnp.pad(segment_ids, ((0, 0), (0, room))))

    def write(self, k: jax.Array, v: jax.Array, segment_ids: jax.Array, index: jax.Array) -> KVCache:
        """The cache with new k, v [layers, B, L, kv_heads, head_dim] at slots index.. of every row."""
        at = (0, 0, 0, index, 0)
        return KVCache(
            jax.lax.dynamic_update_slice(self.k, k.swapaxes(2, 3), at),
            jax.lax.dynamic_update_slice(self.v, v.swapaxes(2, 3), at),
            jax.lax.dynamic_update_slice(self.segment_ids, segment_ids, (0, index)),
        )

    def repeat(self, times: int) -> KVCache:
        """The cache of `times` copies of every row, side by side."""
        return KVCache(*(jnp.repeat(x, times, axis) for x, axis in ((self.k, 1), (self.v, 1), (self.segment_ids, 0))))

    def take(self, rows: jax.Array) -> KVCache:
        """The cache of these rows int [R]."""
        return KVCache(self.k[:, rows], self.v[:, rows], self.segment_ids[rows])
