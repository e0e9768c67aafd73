"""What all decoders do: run a causal stack over embeddings, whole rows at once or through a key-value cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.kernels.attention import attention
from alm_jax.kernels.decode_attention import decode_attention
from alm_jax.kernels.linear_cross_entropy import linear_cross_entropy
from alm_jax.layers import stack
from alm_jax.models.cache import KVCache

# Queries [B, L, heads, width], keys and values [B, L, kv_heads, width] -> [B, L, heads, width].
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Decoder(nnx.Module):
    """Embeddings in, hidden states out; the head is apart, so that losses may fuse with it.

    A decoder has a `config` (with `depth`, `tie_embeddings`, `remat` and `cross_entropy`), `embed`
    (`layers.embed.Embed`), stacked `blocks` (`block(x, place, attend, key) -> (x, (keys, values))`), the final `norm`,
    and `head` unless it is tied.
    """

    @property
    @abstractmethod
    def limit(self) -> int:
        """Positions of the longest row that it was trained for and can read."""

    @abstractmethod
    def begin(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        """Embeddings [B, L, dim] at positions int [B, L] -> (input of the first block, `place` of every block)."""

    def __call__(self, x, positions, q_segment_ids, kv_segment_ids, key=None):
        """Hidden states of whole rows.

        Args:
            x: embeddings [B, L, dim]; its dtype is the compute dtype.
            positions, q_segment_ids, kv_segment_ids: int [B, L], see `core.sequence.Batch`.
            key: turns adapter dropout on.

        Returns:
            [B, L, dim] after the final norm.
        """
        return self._run(x, positions, q_segment_ids, kv_segment_ids, key, collect=False)[0]

    def prefill(self, x, positions, segment_ids, slots: int) -> tuple[jax.Array, KVCache]:
        """As `__call__`, and a cache of `slots` slots whose first L are filled."""
        hidden, (k, v) = self._run(x, positions, segment_ids, segment_ids, None, collect=True)
        return hidden, KVCache.filled(k, v, segment_ids, slots)

    def _run(self, x, positions, q_segment_ids, kv_segment_ids, key, collect):
        def attend(q, k, v):
            return attention(q, k, v, q_segment_ids=q_segment_ids, kv_segment_ids=kv_segment_ids, causal=True)

        x, place = self.begin(x, positions)

        def body(block, x, key):
            x, kv = block(x, place, attend, key)
            return x, kv if collect else None

        keys = stack.layer_keys(key, self.config.depth)
        x, kv = stack.run(body, self.blocks, x, keys, remat=self.config.remat)
        return self.norm(x), kv

    def decode(self, x, positions, cache: KVCache, index) -> tuple[jax.Array, KVCache]:
        """Hidden states of L new tokens a row, written to cache slots index..index+L-1.

        Args:
            x: [B, L, dim]. positions: int [B, L] true positions. index: scalar, the same slot for all rows.

        The layer scan only reads the cache; the new keys and values are written by one update after it, so that a
        donated cache is changed in place.
        """
        new_ids = jnp.ones(positions.shape, jnp.int32)
        x, place = self.begin(x, positions)

        def body(block, x, layer):
            def attend(q, k, v):
                ids = {"q_segment_ids": new_ids, "kv_segment_ids": cache.segment_ids}
                return decode_attention(q, k, v, cache.k, cache.v, layer=layer, **ids)

            return block(x, place, attend)

        x, (k, v) = stack.run(body, self.blocks, x, jnp.arange(self.config.depth))
        return self.norm(x), cache.write(k, v, new_ids, index)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., dim] -> float32 logits [..., vocab]."""
        if self.config.tie_embeddings:
            return self.embed.attend(hidden)
        kernel = self.head.kernel[...].astype(hidden.dtype)
        return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)

    def cross_entropy(self, hidden: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
        """Sum of `weight` [B, L] x negative log-likelihood of `targets` int [B, L] after `hidden` [B, L, dim]; float32.

        By the kernel that `config.cross_entropy` names, most of which never hold logits of all positions.
        """
        tied = self.config.tie_embeddings
        kernel, vocab_axis = (self.embed.embedding, 0) if tied else (self.head.kernel, 1)
        return linear_cross_entropy(
            hidden, kernel[...], targets, weight, vocab_axis=vocab_axis, implementation=self.config.cross_entropy
        )
