"""Splash attention for TPUs, JAX's own Pallas kernel: scores stay in VMEM, blocks that a mask hides are skipped."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from alm_jax.core import axes as ax
from alm_jax.core.mesh import indivisible, per_device, platform
from alm_jax.kernels import tuning
from alm_jax.kernels.attention.rows import whole_rows

_BLOCKS = (512, 256, 128, 1024)  # of queries and of keys: the default is the first that divides them
_SMALLEST = 128
_WIDTHS = 64  # of heads: multiples of this have been compiled
_IDS = (ax.BATCH, None)


def refusal(
    q: jax.Array, k: jax.Array, prefix: int = 0, bias: jax.Array | None = None, interpret: bool = False
) -> str | None:
    """Why splash attention cannot do this call, in words; None if it can."""
    if platform() != "tpu" and not interpret:
        return f"it needs a TPU, the platform is {platform()}"
    if bias is not None:
        return "it adds no bias to the scores"
    if q.shape[1] % _SMALLEST or k.shape[1] % _SMALLEST:
        return f"it needs lengths of multiples of {_SMALLEST}, got {q.shape[1]} queries and {k.shape[1]} keys"
    if q.shape[-1] % _WIDTHS:
        return f"it needs heads of a width that is a multiple of {_WIDTHS}, got {q.shape[-1]}"
    q_axes, kv_axes = whole_rows(q, k)
    return indivisible(q.shape, q_axes) or indivisible(k.shape, kv_axes)


def attention(
    q,
    k,
    v,
    *,
    q_segment_ids=None,
    kv_segment_ids=None,
    causal=False,
    prefix=0,
    bias=None,
    scale=None,
    interpret=False,
):
    """See `api.attention`; `bias` is None (`refusal`). A query that sees no key gets the mean of some values, not of
    all; no layout of ours has one whose output is used."""
    del bias
    shape = (q.shape[1], k.shape[1])
    ids = () if q_segment_ids is None else (q_segment_ids, jnp.where(kv_segment_ids == 0, -1, kv_segment_ids))

    def local(q, k, v, *ids):
        mask = splash.MultiHeadMask([_mask(shape, causal, prefix)] * q.shape[2])
        kernel = splash.make_splash_mha(
            mask, block_sizes=_block_sizes(*shape, q.shape[-1]), head_shards=1, q_seq_shards=1, interpret=interpret
        )
        row = lambda q, k, v, *ids: kernel(q, k, v, segment_ids=splash.SegmentIds(*ids) if ids else None)
        out = jax.vmap(row)(*(x.swapaxes(1, 2) for x in (q, k, v)), *ids)
        return (out.swapaxes(1, 2),)

    scaled = (q * (q.shape[-1] ** -0.5 if scale is None else scale)).astype(q.dtype)
    q_axes, kv_axes = whole_rows(q, k)
    return per_device(local, [q_axes, kv_axes, kv_axes, *[_IDS] * len(ids)], [q_axes])(scaled, k, v, *ids)[0]


def _mask(shape: tuple[int, int], causal: bool, prefix: int) -> splash.Mask:
    if not causal:
        return splash.FullMask(shape)
    if not prefix:
        return splash.CausalMask(shape)
    return splash.NumpyMask(splash.make_causal_mask(shape) | (np.arange(shape[1]) < prefix))


def _block_sizes(queries: int, keys: int, width: int) -> splash.BlockSizes:
    fitting = [[size for size in _BLOCKS if length % size == 0] for length in (queries, keys)]
    shape = {"queries": queries, "keys": keys, "width": width}
    blocks = tuning.choose("attention.splash", shape, ({"q": q, "kv": kv} for q, kv in product(*fitting)))
    q, kv = blocks["q"], blocks["kv"]
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
