"""Losses that draw pairs of embeddings together and all others apart, over a batch that is divided over a mesh.

A device holds the embeddings of the whole batch, [B, dim], and scores its own rows against them block by block: the
[B, B] similarities never exist, neither forward nor backward, where blocks are computed again.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from alm_jax.core.mesh import DATA, FSDP

BLOCK = 1024  # rows that are scored against at a time, at most
_NEVER = -1e30  # score of what takes no part; finite, so that a block of nothing else has a gradient


def unit(x: jax.Array) -> jax.Array:
    """Vectors along the last axis, of length 1. One of zeros stays so, and its gradient is finite."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), 1e-24))).astype(x.dtype)


def softmax_contrast(
    audio: jax.Array, text: jax.Array, scales: tuple[jax.Array, jax.Array], rows: jax.Array | None = None
) -> jax.Array:
    """Symmetric InfoNCE (van den Oord et al. 2018; CLIP, CLAP): clip i belongs to text i; cross-entropy both ways,
    averaged.

    Args:
        audio, text: [B, dim], of length 1. scales: of scores of clips among texts and of texts among clips (inverse
            temperatures). rows: bool [B], False for places that hold no pair; None if all do. One at least does.

    Returns:
        float32 scalar, the mean over pairs.
    """

    def one_way(queries, keys, own, scale):
        among = lambda block, valid: jax.nn.logsumexp(jnp.where(valid, scale * _scores(queries, block), _NEVER), -1)
        return jax.nn.logsumexp(_by_blocks(among, *keys, len(queries)), axis=0) - scale * own

    def local(audio, text, rows, scales):
        own = (audio * text).sum(-1)
        texts, clips = _whole((text, rows)), _whole((audio, rows))
        return (one_way(audio, texts, own, scales[0]) + one_way(text, clips, own, scales[1])) / 2

    return _mean_over_mesh(local, audio, text, rows, scales)


def sigmoid_contrast(
    audio: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array, rows: jax.Array | None = None
) -> jax.Array:
    """SigLIP (Zhai et al. 2023): each clip and each text are a pair or not, by logistic regression on their score.

    Args:
        audio, text, rows: as of `softmax_contrast`. scale, bias: a score is `scale * cosine + bias`.

    Returns:
        float32 scalar: summed over texts (as published), the mean over clips.
    """

    def local(audio, text, rows, parameters):
        scale, bias = parameters
        score = lambda block: scale * _scores(audio, block) + bias
        apart = lambda block, valid: jnp.where(valid, jax.nn.softplus(score(block)), 0.0).sum(-1)
        # -log sigmoid(x) of a pair is softplus(x) - x, and softplus(x) is already among those of all.
        return _by_blocks(apart, *_whole((text, rows)), len(audio)).sum(0) - scale * (audio * text).sum(-1) - bias

    return _mean_over_mesh(local, audio, text, rows, (scale, bias))


def _mean_over_mesh(local: Callable, audio, text, rows, parameters) -> jax.Array:
    """Mean of the losses [n] that `local` finds of a device's own rows."""
    rows = jnp.ones(len(audio), bool) if rows is None else rows
    audio, text = audio.astype(jnp.float32), text.astype(jnp.float32)

    def mean(audio, text, rows, parameters):
        losses = jnp.where(rows, local(audio, text, rows, parameters), 0.0)
        return _total(losses.sum()) / _total(rows.sum())

    if jax.sharding.get_abstract_mesh().empty:
        return mean(audio, text, rows, parameters)
    own, all_of_it = PartitionSpec((DATA, FSDP)), PartitionSpec()
    mean = jax.shard_map(mean, in_specs=(own, own, own, all_of_it), out_specs=all_of_it)
    return mean(audio, text, rows, parameters)


def _by_blocks(reduce: Callable, keys: jax.Array, valid: jax.Array, own: int) -> jax.Array:
    """`reduce(keys [size, dim], valid [size])` of each block of the batch, no larger than a device's `own` rows."""
    size = min(BLOCK, own)
    missing = -len(keys) % size
    keys = jnp.pad(keys, ((0, missing), (0, 0))).reshape(-1, size, keys.shape[1])
    valid = jnp.pad(valid, (0, missing)).reshape(-1, size)
    return jax.lax.map(lambda block: jax.checkpoint(reduce)(*block), (keys, valid))


def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.matmul(queries, keys.T, precision="highest")


def _on_mesh() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def _whole(parts):
    """A device's rows -> all devices' rows."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, (DATA, FSDP), tiled=True), parts) if _on_mesh() else parts


def _total(x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, (DATA, FSDP)) if _on_mesh() else x
