"""Pallas kernel for TPUs: one new token a row over blocks of the cache, with an online softmax.

A row's blocks before its first and behind its last slot that is seen are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alm_jax.core import axes as ax
from alm_jax.core.mesh import indivisible, parts, per_device, platform
from alm_jax.kernels import tuning
from alm_jax.kernels.attention.reference import segment_mask
from alm_jax.kernels.vmem import vmem

_SLOTS = (512, 256, 128, 64, 1024, 2048)  # of a block: the default is the first that fits
_SUBLANES = 16  # of a bfloat16 tile
_WIDTHS = 64  # of heads: multiples of this have been compiled
_Q = (ax.BATCH, None, ax.HEADS, None)
_NEW = (ax.BATCH, None, ax.KV_HEADS, None)
_CACHE = (None, ax.BATCH, ax.KV_HEADS, None, None)


def refusal(q: jax.Array, cache: jax.Array, interpret: bool = False) -> str | None:
    """Why this kernel cannot do a call, in words; None if it can."""
    if platform() != "tpu" and not interpret:
        return f"it needs a TPU, the platform is {platform()}"
    if q.shape[1] != 1:
        return f"it takes one new token a row, got {q.shape[1]}"
    if q.dtype != cache.dtype or q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs queries and a cache of bfloat16 or of float32, got {q.dtype} and {cache.dtype}"
    if q.shape[-1] % _WIDTHS:
        return f"it needs heads of a width that is a multiple of {_WIDTHS}, got {q.shape[-1]}"
    if undivided := indivisible(q.shape, _Q) or indivisible(cache.shape, _CACHE):
        return undivided
    _, _, groups, slots, width = cache.shape
    groups //= parts((ax.KV_HEADS,))[0]
    if not any(_blocks(groups, slots, width, cache.dtype.itemsize)):
        return f"no block of {groups} heads and a divisor of {slots} slots fits the {vmem() // 2**20} MiB of VMEM"
    return None


def decode_attention(
    q, k_new, v_new, k_cache, v_cache, *, layer, q_segment_ids, kv_segment_ids, scale, interpret
) -> jax.Array:
    """See `api.decode_attention`; L is 1 (`refusal`)."""
    seen = segment_mask(q_segment_ids, kv_segment_ids)[:, 0, 0].astype(jnp.int32)  # [B, S]
    layer = jnp.asarray(layer, jnp.int32).reshape(1)
    arguments = [_Q, _NEW, _NEW, _CACHE, _CACHE, (None,), (ax.BATCH, None)]
    local = partial(_local, scale, interpret)
    return per_device(local, arguments, [_Q])(q, k_new, v_new, k_cache, v_cache, layer, seen)[0]


def _local(scale: float, interpret: bool, q, k_new, v_new, k_cache, v_cache, layer, seen) -> tuple[jax.Array]:
    (batch, _, heads, width), (_, _, groups, slots, _) = q.shape, k_cache.shape
    shape = {"kv_heads": groups, "slots": slots, "width": width, "bytes": q.dtype.itemsize}
    block = tuning.choose("decode_attention", shape, _blocks(groups, slots, width, q.dtype.itemsize))["slots"]
    count, together = slots // block, heads // groups
    more = -together % _SUBLANES
    queries = jnp.pad(q.reshape(batch, groups, together, width), ((0, 0), (0, 0), (0, more), (0, 0)))
    news = [x.reshape(batch, groups, 1, width) for x in (k_new, v_new)]
    any_seen = seen.reshape(batch, count, block).any(-1)
    first = jnp.argmax(any_seen, axis=1).astype(jnp.int32)
    last = jnp.where(any_seen.any(1), count - 1 - jnp.argmax(any_seen[:, ::-1], axis=1), -1).astype(jnp.int32)

    at = lambda row, j, first, last: jnp.maximum(jnp.clip(j, first[row], last[row]), 0)  # a block read is kept
    row_spec = lambda *sizes: pl.BlockSpec((None, *sizes), lambda row, *_: (row, 0, 0, 0))
    cache_spec = pl.BlockSpec(
        (None, None, groups, block, width),
        lambda row, j, layer, first, last: (layer[0], row, 0, at(row, j, first, last), 0),
    )
    seen_spec = pl.BlockSpec(
        (None, None, 1, block), lambda row, j, layer, first, last: (row, at(row, j, first, last), 0, 0)
    )
    columns = lambda n: pltpu.VMEM((groups, together + more, n), jnp.float32)
    out = pl.pallas_call(
        partial(_body, scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, count),
            in_specs=[
                row_spec(groups, together + more, width),
                *[row_spec(groups, 1, width)] * 2,
                *[cache_spec] * 2,
                seen_spec,
            ],
            out_specs=row_spec(groups, together + more, width),
            scratch_shapes=[columns(1), columns(1), columns(width)],
        ),
        out_shape=jax.ShapeDtypeStruct(queries.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem()),
        interpret=interpret,
    )(layer, first, last, queries, *news, k_cache, v_cache, seen.reshape(batch, count, 1, block))
    return (out[:, :, :together].reshape(q.shape),)


def _body(scale, layer, first, last, q, k_new, v_new, k_cache, v_cache, seen, out, top, total, summed):
    row, j = pl.program_id(0), pl.program_id(1)
    wide = lambda x: x.astype(jnp.float32)

    @pl.when(j == 0)
    def _():  # the new token, which sees itself
        top[...] = scale * jnp.sum(wide(q[...]) * wide(k_new[...]), axis=-1, keepdims=True)
        total[...] = jnp.ones_like(total)
        summed[...] = jnp.broadcast_to(wide(v_new[...]), summed.shape)

    @pl.when((first[row] <= j) & (j <= last[row]))
    def _():
        scores = scale * _product(q[...], k_cache[...], 2)  # [K, R, slots]
        scores = jnp.where(seen[...][None] != 0, scores, -jnp.inf)
        above = jnp.maximum(top[...], jnp.max(scores, axis=-1, keepdims=True))
        weights, fade = jnp.exp(scores - above), jnp.exp(top[...] - above)
        total[...] = fade * total[...] + jnp.sum(weights, axis=-1, keepdims=True)
        summed[...] = fade * summed[...] + _product(weights.astype(v_cache.dtype), v_cache[...], 1)
        top[...] = above

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        out[...] = (summed[...] / total[...]).astype(out.dtype)


def _product(x: jax.Array, y: jax.Array, axis: int) -> jax.Array:
    """float32 product of each head's matrices, along the last axis of x and this one of y."""
    precision = "highest" if x.dtype == jnp.float32 else None
    dims = (((2,), (axis,)), ((0,), (0,)))
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def _blocks(groups: int, slots: int, width: int, itemsize: int) -> Iterator[tuning.Blocks]:
    """Divisors of the slots whose keys and values fit VMEM twice, with as many scores."""
    for block in _SLOTS:
        lanes = -(-width // 128) * 128
        if slots % block == 0 and groups * block * (4 * lanes * itemsize + 3 * 4 * _SUBLANES) <= vmem():
            yield {"slots": block}
