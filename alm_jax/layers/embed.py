"""Token embedding, and its use as a tied output head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers import initializers as init


class Embed(nnx.Module):
    """Table [vocab, dim]."""

    def __init__(self, vocab: int, dim: int, key: jax.Array, std: float = 0.02):
        self.embedding = init.normal(key, (vocab, dim), (ax.VOCAB, ax.EMBED), std)

    def __call__(self, ids: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """int [...] -> [..., dim] in `dtype`."""
        return self.embedding[...].astype(dtype)[ids]

    def attend(self, hidden: jax.Array) -> jax.Array:
        """[..., dim] -> float32 logits [..., vocab] against the same table."""
        table = self.embedding[...].astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
