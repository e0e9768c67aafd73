"""Pallas kernels for TPUs: some windows at a time with all of their heads, whose scores never leave VMEM.

Heads stay side by side, as the projections give them, so that narrow ones fill no more memory than they have. The
backward pass makes the weights anew; the bias's gradient is summed over the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import gcd

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alm_jax.core import axes as ax
from alm_jax.core.mesh import indivisible, mesh_axes, parts, per_device, platform
from alm_jax.kernels import tuning
from alm_jax.kernels.vmem import vmem

_WINDOWS = (8, 4, 2, 1, 16, 32)  # of a block: the default is the first that divides them and fits
_SUBLANES = 16  # of a bfloat16 tile
_HEADS = (ax.BATCH, None, ax.HEADS, None)
_BIAS = (ax.HEADS, None, None)


def refusal(q: jax.Array, regions: jax.Array | None, interpret: bool = False) -> str | None:
    """Why these kernels cannot do a call, in words; None if they can."""
    if platform() != "tpu" and not interpret:
        return f"it needs a TPU, the platform is {platform()}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs bfloat16 or float32, got {q.dtype}"
    if q.shape[1] % _SUBLANES:
        return f"it needs windows of a multiple of {_SUBLANES} places, got {q.shape[1]}"
    if undivided := indivisible(q.shape, _HEADS):
        return undivided
    rows, _, heads, _ = parts(_HEADS)
    windows, pictures = q.shape[0] // rows, 1 if regions is None else regions.shape[0]
    if windows % pictures:
        return f"a device has {windows} windows, which are no whole pictures of {pictures}"
    if not any(_blocks(windows, regions, q.shape[1], q.shape[2] // heads, q.shape[3], q.dtype.itemsize)):
        return f"one window of width {q.shape[2] // heads * q.shape[3]} does not fit the {vmem() // 2**20} MiB of VMEM"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def window_attention(scale: float, interpret: bool, q, k, v, bias, regions) -> jax.Array:
    """See `api.window_attention`."""
    arguments = [*[_HEADS] * 3, _BIAS, *_region_axes(regions)]
    local = lambda *arrays: (_Call.of(scale, interpret, *arrays).forward(),)
    return per_device(local, arguments, [_HEADS])(q, k, v, bias, *_given(regions))[0]


def _forward(scale: float, interpret: bool, *arrays):
    return window_attention(scale, interpret, *arrays), arrays


def _backward(scale: float, interpret: bool, arrays, d_out):
    q, k, v, bias, regions = arrays

    def local(d_out, *arrays):
        *grads, d_bias = _Call.of(scale, interpret, *arrays).backward(d_out)
        axes = mesh_axes(ax.BATCH)
        return *grads, jax.lax.psum(d_bias, axes) if axes else d_bias

    arguments, results = [*[_HEADS] * 4, _BIAS, *_region_axes(regions)], [*[_HEADS] * 3, _BIAS]
    *grads, d_bias = per_device(local, arguments, results)(d_out, q, k, v, bias, *_given(regions))
    return *grads, d_bias.astype(bias.dtype), None


window_attention.defvjp(_forward, _backward)


def _given(regions: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if regions is None else (regions,)


def _region_axes(regions: jax.Array | None) -> list[tuple[None, None]]:
    return [(None, None)] * len(_given(regions))


@dataclass(frozen=True)
class _Call:
    """A device's arrays, heads side by side [N, L, H * D]; `block` windows at a time."""

    scale: float
    interpret: bool
    shape: tuple[int, ...]
    block: int
    heads: tuple[jax.Array, ...]
    bias: jax.Array
    regions: jax.Array | None

    @classmethod
    def of(cls, scale: float, interpret: bool, q, k, v, bias, regions=None) -> _Call:
        (windows, places, heads, width), itemsize = q.shape, q.dtype.itemsize
        sizes = {"windows": windows, "places": places, "heads": heads, "width": width, "bytes": itemsize}
        blocks = _blocks(windows, regions, places, heads, width, itemsize)
        block = tuning.choose("window_attention", sizes, blocks)["windows"]
        beside = tuple(_beside(x) for x in (q, k, v))
        return cls(scale, interpret, q.shape, block, beside, bias.astype(jnp.float32), regions)

    def forward(self) -> jax.Array:
        """[N, L, H, D]."""
        (out,) = self._run(_forward_body, self.heads, 1, ())
        return out.reshape(self.shape)

    def backward(self, d_out: jax.Array) -> tuple[jax.Array, ...]:
        """Gradients of q, k and v [N, L, H, D], and of the bias, float32 [H, L, L]."""
        *grads, d_bias = self._run(_backward_body, (*self.heads, _beside(d_out)), 3, (self.bias,))
        return *(x.reshape(self.shape) for x in grads), d_bias

    def _run(self, body, arrays: tuple[jax.Array, ...], results: int, sums: tuple[jax.Array, ...]) -> list[jax.Array]:
        windows, places, _, width = self.shape
        block, q = self.block, self.heads[0]
        whole = pl.BlockSpec(self.bias.shape, lambda i: (0, 0, 0))
        some = pl.BlockSpec((block, places, q.shape[2]), lambda i: (i, 0, 0))
        regions, region_specs = (), []
        if self.regions is not None:  # of queries along the sublanes, of keys along the lanes
            regions = (self.regions[:, :, None], self.regions[:, None, :])
            blocks = self.regions.shape[0] // block
            region_specs = [pl.BlockSpec((block, *x.shape[1:]), lambda i: (i % blocks, 0, 0)) for x in regions]
        shapes = [jax.ShapeDtypeStruct(q.shape, q.dtype)] * results
        shapes += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in sums]
        return pl.pallas_call(
            partial(body, _Window(self.scale, width, bool(regions))),
            grid=(windows // block,),
            in_specs=[*[some] * len(arrays), whole, *region_specs],
            out_specs=[*[some] * results, *[whole] * len(sums)],
            out_shape=shapes,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary" if sums else "parallel",), vmem_limit_bytes=vmem()
            ),
            interpret=self.interpret,
        )(*arrays, self.bias, *regions)


@dataclass(frozen=True)
class _Window:
    """What is static inside a kernel: heads are `width` wide; whether there are regions."""

    scale: float
    width: int
    masked: bool

    def weights(self, q, k, bias, regions) -> jax.Array:
        """Of one head: float32 [windows, L, L]."""
        scores = self.scale * _product(q, k, 2, 2) + bias
        if self.masked:
            of_queries, of_keys = regions
            scores = jnp.where(of_queries[...] == of_keys[...], scores, -jnp.inf)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        return weights / jnp.sum(weights, axis=-1, keepdims=True)

    def heads(self, bias) -> Iterator[tuple[int, slice]]:
        """Number and columns of each head."""
        yield from ((head, slice(head * self.width, (head + 1) * self.width)) for head in range(bias.shape[0]))


def _forward_body(window: _Window, q, k, v, bias, *refs):
    *regions, out = refs
    for head, at in window.heads(bias):
        weights = window.weights(q[:, :, at], k[:, :, at], bias[head], regions)
        out[:, :, at] = _product(weights.astype(v.dtype), v[:, :, at], 2, 1).astype(out.dtype)


def _backward_body(window: _Window, q, k, v, d_out, bias, *refs):
    *regions, d_q, d_k, d_v, d_bias = refs

    @pl.when(pl.program_id(0) == 0)
    def _():
        d_bias[...] = jnp.zeros_like(d_bias)

    for head, at in window.heads(bias):
        weights = window.weights(q[:, :, at], k[:, :, at], bias[head], regions)
        d_v[:, :, at] = _product(weights.astype(v.dtype), d_out[:, :, at], 1, 1).astype(d_v.dtype)
        d_weights = _product(d_out[:, :, at], v[:, :, at], 2, 2)
        d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
        d_bias[head] += jnp.sum(d_scores, axis=0)
        d_scores = (window.scale * d_scores).astype(q.dtype)
        d_q[:, :, at] = _product(d_scores, k[:, :, at], 2, 1).astype(d_q.dtype)
        d_k[:, :, at] = _product(d_scores, q[:, :, at], 1, 1).astype(d_k.dtype)


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """float32 product of each window's matrices, along these axes."""
    precision = "highest" if x.dtype == jnp.float32 else None
    dims = (((x_axis,), (y_axis,)), ((0,), (0,)))
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def _beside(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], -1)


def _blocks(
    windows: int, regions: jax.Array | None, places: int, heads: int, width: int, itemsize: int
) -> Iterator[tuning.Blocks]:
    """Numbers of windows that divide a picture's and fit VMEM: arrays held twice, a head's scores a few times."""
    count = windows if regions is None else gcd(windows, regions.shape[0])
    lanes = lambda size: -(-size // 128) * 128
    biases = 4 * heads * places * lanes(places) * 4
    window = places * (2 * 7 * lanes(heads * width) * itemsize + 6 * lanes(places) * 4 + 2 * 128 * 4)
    for block in _WINDOWS:
        if count % block == 0 and biases + block * window <= vmem():
            yield {"windows": block}
