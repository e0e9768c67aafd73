"""Pallas kernel for TPUs: tiles of int8 codes come from HBM as they are and are widened in VMEM."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alm_jax.core.mesh import platform
from alm_jax.kernels import tuning
from alm_jax.kernels.vmem import vmem

LANES = 128
_ROWS = (1024, 512, 256, 128)  # of x in a tile: to choose from
_CANDIDATES = 12  # tiles that may be tried out


def refusal(inputs: int, outputs: int, dtype: Any, interpret: bool) -> str | None:
    """Why this kernel cannot do a call, in words; None if it can."""
    if platform() != "tpu" and not interpret:
        return f"it needs a TPU, the platform is {platform()}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs bfloat16 or float32, got {jnp.dtype(dtype)}"
    if inputs % LANES or outputs % LANES:
        return f"it needs a kernel of multiples of {LANES} on each device, got {inputs} x {outputs}"
    return None


def forward(x: jax.Array, codes: jax.Array, scale: jax.Array, interpret: bool) -> jax.Array:
    """[N, in], int8 [in, out], float32 [out] -> [N, out] in the dtype of x."""
    return _run(x, codes, scale, interpret, axis=0)


def backward(dy: jax.Array, codes: jax.Array, scale: jax.Array, interpret: bool) -> jax.Array:
    """[N, out] -> [N, in]: the gradient of x."""
    return _run(dy, codes, scale, interpret, axis=1)


def _run(x: jax.Array, codes: jax.Array, scale: jax.Array, interpret: bool, axis: int) -> jax.Array:
    """x times the codes, whose axis `axis` is summed over."""
    count, width = codes.shape[axis], codes.shape[1 - axis]
    shape = {"rows": x.shape[0], "width": width, "count": count, "bytes": x.dtype.itemsize, "axis": axis}
    tile = tuning.choose("int8_matmul", shape, _tiles(x.shape[0], width, count, x.dtype.itemsize))
    rows, columns, step = tile["rows"], tile["columns"], tile["step"]
    padded = -(-x.shape[0] // rows) * rows
    sides = (step, columns) if axis == 0 else (columns, step)
    out = pl.pallas_call(
        partial(_body, axis),
        grid=(padded // rows, width // columns, count // step),
        in_specs=[
            pl.BlockSpec((rows, step), lambda i, j, k: (i, k)),
            pl.BlockSpec(sides, lambda i, j, k: (k, j) if axis == 0 else (j, k)),
            pl.BlockSpec((1, sides[1]), lambda i, j, k: (0, k if axis else j)),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((padded, width), x.dtype),
        scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem()
        ),
        interpret=interpret,
    )(jnp.pad(x, ((0, padded - x.shape[0]), (0, 0))), codes, scale[None])
    return out[: x.shape[0]]


def _body(axis: int, x, codes, scale, out, total):
    @pl.when(pl.program_id(2) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    values = x[...] if axis == 0 else (x[...] * scale[...]).astype(x.dtype)
    dims = (((1,), (axis,)), ((), ()))
    total[...] += jax.lax.dot_general(values, codes[...].astype(x.dtype), dims, preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        out[...] = (total[...] * scale[...] if axis == 0 else total[...]).astype(out.dtype)


def _tiles(rows: int, width: int, count: int, itemsize: int) -> list[tuning.Blocks]:
    """Rows, columns and summed inputs of a tile: of those that fit VMEM, the ones that read least from HBM, largest
    first."""
    chosen = dict.fromkeys(min(size, -(-rows // 16) * 16) for size in _ROWS)  # a bfloat16 tile has 16 sublanes
    tiles = [(m, n, k) for m in chosen for n in _sides(width) for k in _sides(count)]

    def cost(tile: tuple[int, int, int]) -> tuple[float, int]:
        m, n, k = tile
        return rows * itemsize * width / n + -(-rows // m) * width, -n * k  # bytes for each of `count`

    fitting = sorted((tile for tile in tiles if _bytes(*tile, itemsize) <= vmem()), key=cost)
    return [dict(zip(("rows", "columns", "step"), tile)) for tile in fitting[:_CANDIDATES]]


def _sides(size: int) -> Iterator[int]:
    return (side for side in range(LANES, size + 1, LANES) if size % side == 0)


def _bytes(rows: int, columns: int, step: int, itemsize: int) -> int:
    """At most in VMEM: blocks in and out are held twice, the sum and the widened codes once."""
    blocks = 2 * ((rows * step + rows * columns) * itemsize + step * columns)
    return blocks + 2 * rows * columns * 4 + step * columns * itemsize + 2 * rows * step * 4
