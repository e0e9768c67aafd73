"""Values and gradients of a batch whose activations do not fit at once: rows in micro-batches, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.core import mesh as meshes
from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Batch
from alm_jax.core.tree import Arrays
from alm_jax.train.batches import check_rows


class Division:
    """A batch of `rows` rows as micro-batches of `size` rows over all devices, each of which keeps its own.

    Raises:
        ConfigError: the size does not divide the rows, or the devices not the size.
    """

    def __init__(self, rows: int, size: int, mesh: Mesh | None):
        if rows % size:
            raise ConfigError(f"micro_batch {size} has to divide batch_size {rows}")
        self.shards = 1
        if mesh is not None:
            check_rows(mesh, "micro_batch", size)
            self.shards = mesh.shape[meshes.DATA] * mesh.shape[meshes.FSDP]
        self.rows, self.size, self.mesh = rows, size, mesh

    def divide(self, tree: Any) -> Any:
        """[B, ...] -> [n, size, ...]."""
        n, own = self.rows // self.size, self.size // self.shards

        def leaf(x: jax.Array) -> jax.Array:
            x = x.reshape(self.shards, n, own, *x.shape[1:]).swapaxes(0, 1)
            return self._placed(x.reshape(n, self.size, *x.shape[3:]), None)

        return jax.tree.map(leaf, tree)

    def join(self, tree: Any) -> Any:
        """[n, size, ...] -> [B, ...], the rows in their places."""
        n, own = self.rows // self.size, self.size // self.shards

        def leaf(x: jax.Array) -> jax.Array:
            x = x.reshape(n, self.shards, own, *x.shape[2:]).swapaxes(0, 1)
            return self._placed(x.reshape(self.rows, *x.shape[3:]))

        return jax.tree.map(leaf, tree)

    def _placed(self, x: jax.Array, *before: None) -> jax.Array:
        if self.mesh is None:
            return x
        spec = PartitionSpec(*before, *meshes.batch_sharding(self.mesh).spec)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def summed(value_and_grad: Callable, params: Arrays, batch: Batch, weight: jax.Array, key: jax.Array, to: Division):
    """Sum of values and gradients over micro-batches of a loss that is a sum over rows.

    Args:
        value_and_grad: (params, batch, weight, key) -> ((value, parts), grads).
    """

    def body(total, micro):
        index, (batch, weight) = micro
        result = value_and_grad(params, batch, weight, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    micros = (jnp.arange(to.rows // to.size), to.divide((batch, weight)))
    first = jax.tree.map(lambda leaf: leaf[0], micros[1])
    parts = jax.eval_shape(value_and_grad, params, *first, key)[0]
    zero = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parts), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(body, zero, micros)[0]


def cached(embed: Callable, compare: Callable, params: Arrays, batch: Batch, key: jax.Array, to: Division):
    """Value and gradient of a loss over what all rows became, by gradient caching (Gao et al. 2021): rows are embedded
    without keeping activations, the loss's gradient for the embeddings is taken over the whole batch, then each
    micro-batch is embedded again and passes its part of that gradient on. Exact, dropout included.

    Args:
        embed: (params, batch, key) -> arrays [size, ...]. compare: (params, these arrays of the whole batch)
            -> (value, parts).
    """
    micros = (jnp.arange(to.rows // to.size), to.divide(batch))
    run = lambda params, micro: embed(params, micro[1], jax.random.fold_in(key, micro[0]))
    embedded = to.join(jax.lax.map(lambda micro: run(params, micro), micros))
    value, (grads, wanted) = jax.value_and_grad(compare, (0, 1), has_aux=True)(params, embedded)

    def body(total, both):
        micro, wanted = both
        _, backward = jax.vjp(lambda params: run(params, micro), params)
        return jax.tree.map(jnp.add, total, backward(wanted)[0]), None

    return value, jax.lax.scan(body, grads, (micros, to.divide(wanted)))[0]
