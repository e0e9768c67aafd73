"""A model of two matrices with the interface that training needs, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.core.sequence import Batch
from alm_jax.kernels.linear_cross_entropy import linear_cross_entropy


class Toy(nnx.Module):
    """Predicts the next token from the token before: embedding (frozen in tests), a scale and a head."""

    def __init__(self, key, vocab=11, dim=8, rate=0.0):
        keys = jax.random.split(key)
        self.embedding = nnx.Param(jax.random.normal(keys[0], (vocab, dim)), axes=("vocab", "embed"))
        self.scale = nnx.Param(jnp.ones(dim), axes=("embed",))
        self.head = nnx.Param(jax.random.normal(keys[1], (dim, vocab)) * 0.1, axes=("embed", "vocab"))
        self.rate = rate

    def hidden(self, batch, key=None, dtype=jnp.float32):
        x = self.embedding[...][batch.tokens].astype(dtype) * self.scale[...].astype(dtype)
        if key is not None and self.rate:
            x = jnp.where(jax.random.bernoulli(key, 1 - self.rate, x.shape), x / (1 - self.rate), 0)
        return x

    def cross_entropy(self, hidden, targets, weight):
        return linear_cross_entropy(hidden, self.head[...], targets, weight)


TRAINABLE = ("scale", "head")


def toy_batch(seed=0, rows=8, length=6, vocab=11):
    """Rows of unequal length; row 3 has no target at all."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length + 1)).astype(np.int32)
    lengths = rng.integers(2, length + 1, rows)
    weight = (np.arange(length) < lengths[:, None]).astype(np.float32)
    if rows > 3:
        weight[3] = 0
    ids = (np.arange(length) < lengths[:, None]).astype(np.int32)
    none = np.full((rows, length), -1, np.int32)
    return Batch(
        tokens=tokens[:, :-1],
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        q_segment_ids=ids,
        kv_segment_ids=ids,
        targets=tokens[:, 1:],
        loss_weight=weight,
        audio_index=none,
        indicator_index=none,
        penalty_mask=ids.astype(bool),
    )
