"""Layers of one shape, stacked along a leading axis and run by one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Remat = Literal["none", "full", "dots"]

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def build(make: Callable[[jax.Array], Any], key: jax.Array, depth: int) -> Any:
    """`depth` modules made by `make(key)`, every parameter with a leading axis of `depth`."""
    return jax.vmap(make)(jax.random.split(key, depth))


def run(body: Callable[..., tuple[Any, Any]], blocks: Any, carry: Any, xs: Any = None, remat: Remat = "none") -> Any:
    """Scan `carry, y = body(block, carry, x)` over stacked blocks.

    Args:
        body: one layer. blocks: from `build`. carry: the residual stream, or a tree that holds it.
        xs: per-layer inputs with the same leading axis, or None.
        remat: what the backward pass recomputes: `none` keeps all activations, `full` keeps the carry alone, `dots`
            keeps the results of matrix products that have no batch axis (weights times activations).

    Returns:
        (carry, stacked ys).
    """
    step = lambda carry, layer: body(layer[0], carry, layer[1])
    if remat != "none":
        step = jax.checkpoint(step, policy=_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (blocks, xs))


def layer_keys(key: jax.Array | None, depth: int) -> jax.Array | None:
    """One dropout key a layer, or None when dropout is off."""
    return None if key is None else jax.random.split(key, depth)


def run_with_taps(
    block: Callable[[Any, jax.Array], jax.Array],
    blocks: Any,
    x: jax.Array,
    *,
    taps: tuple[int, ...],
    reduce: Callable[[jax.Array], jax.Array],
    remat: Remat = "none",
) -> tuple[jax.Array, jax.Array]:
    """Run `x = block(layer, x)` over a stack and keep some of the streams between layers.

    Args:
        taps: which streams: 0 is the input of the first layer, N the output of layer N. Static.
        reduce: applied inside the scan to each kept stream (pooling), so that whole streams are never stacked.

    Returns:
        (last stream, kept streams [len(taps), ...] in the order of `taps`).
    """
    depth = jax.tree_util.tree_leaves(blocks)[0].shape[0]
    if len(taps) > 2:
        first = reduce(x)[None]
        x, kept = run(lambda layer, x, _: (y := block(layer, x), reduce(y)), blocks, x, remat=remat)
        everything = jnp.concatenate([first, kept]) if 0 in taps else kept
        wanted = [tap if 0 in taps else tap - 1 for tap in taps]
        return x, everything if wanted == list(range(len(everything))) else everything[jnp.array(wanted)]

    # Few taps: carried along and overwritten at their layer, cheaper than stacking every stream.
    def body(layer, carry, index):
        x, kept = carry
        x = block(layer, x)
        here = (jnp.array(taps, jnp.int32) == index).reshape(-1, *([1] * (kept.ndim - 1)))
        return (x, jnp.where(here, reduce(x)[None], kept)), None

    kept = jnp.stack([reduce(x)] * len(taps)) if taps else jnp.zeros((0, *reduce(x).shape), x.dtype)
    (x, kept), _ = run(body, blocks, (x, kept), jnp.arange(1, depth + 1), remat=remat)
    return x, kept
