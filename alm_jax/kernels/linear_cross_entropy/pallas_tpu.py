"""Pallas kernels for TPUs: tiles of tokens x vocabulary, whose logits never leave VMEM.

Three kernels. The first runs over the vocabulary with an online log-sum-exp (Milakov & Gimelshein 2018); the other two
make the tile's logits again and multiply their gradient by the kernel (summed over the vocabulary) and by the hidden
states (summed over tokens), as Wijmans et al. 2024 ("Cut Your Losses") do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alm_jax.core.mesh import platform
from alm_jax.kernels import tuning
from alm_jax.kernels.linear_cross_entropy.head import Head
from alm_jax.kernels.vmem import vmem

LANES = 128
_TOKENS, _VOCAB = (512, 256, 128), 1024  # sides of a tile: to choose from, and at most


def refusal(head: Head, width: int, vocab: int, dtype: Any) -> str | None:
    """Why these kernels cannot do a call, in words; None if they can."""
    if platform() != "tpu" and not head.interpret:
        return f"it needs a TPU, the platform is {platform()}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs bfloat16 or float32, got {jnp.dtype(dtype)}"
    if width % LANES or vocab % LANES:
        return f"it needs a width and a vocabulary of multiples of {LANES} on each device, got {width} and {vocab}"
    if not any(_tiles(width, vocab, jnp.dtype(dtype).itemsize)):
        return f"its smallest tiles of width {width} do not fit the {vmem() // 2**20} MiB of VMEM"
    return None


def forward(head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `chunked.forward`."""
    call = _Call.of(head, hidden, kernel)
    return head.whole(*_likelihood(call, call.padded(hidden), kernel, call.padded(targets[:, None])))


def gradients(
    head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weight: jax.Array, trains: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """As `chunked.gradients`."""
    call = _Call.of(head, hidden, kernel)
    hidden, targets, weight = call.padded(hidden), call.padded(targets[:, None]), call.padded(weight[:, None])
    log_sum, chosen = head.whole(*_likelihood(call, hidden, kernel, targets))
    operands = (hidden, kernel, targets, weight, call.padded(log_sum[:, None]))
    d_kernel = _d_kernel(call, *operands) if trains else None
    return log_sum, chosen, _d_hidden(call, *operands), d_kernel


@dataclass(frozen=True)
class _Call:
    """Sizes of a call: tokens before and after padding, width, vocabulary, and the tile's sides."""

    head: Head
    count: int
    tokens: int
    width: int
    vocab: int
    tile: tuple[int, int]

    @classmethod
    def of(cls, head: Head, hidden: jax.Array, kernel: jax.Array) -> _Call:
        (count, width), vocab = hidden.shape, kernel.shape[head.vocab_axis]
        shape = {"width": width, "vocab": vocab, "bytes": hidden.dtype.itemsize}
        tile = tuning.choose("linear_cross_entropy", shape, _tiles(width, vocab, hidden.dtype.itemsize))
        rows, columns = tile["tokens"], tile["vocab"]
        rows = min(rows, -(-count // 16) * 16)  # a bfloat16 tile has 16 sublanes
        return cls(head, count, -(-count // rows) * rows, width, vocab, (rows, columns))

    def padded(self, x: jax.Array) -> jax.Array:
        """Tokens of weight 0 behind the others, to whole tiles."""
        return jnp.pad(x, ((0, self.tokens - self.count), (0, 0)))

    def specs(self, token: Callable, column: Callable) -> dict[str, pl.BlockSpec]:
        """Blocks, given the tile's place along tokens and vocabulary as functions of the grid's indices."""
        (rows, columns), on = self.tile, self.head.vocab_axis
        kernel = (self.width, columns) if on else (columns, self.width)
        return {
            "hidden": pl.BlockSpec((rows, self.width), lambda *i: (token(*i), 0)),
            "kernel": pl.BlockSpec(kernel, lambda *i: (0, column(*i)) if on else (column(*i), 0)),
            "token": pl.BlockSpec((rows, 1), lambda *i: (token(*i), 0)),
        }

    def run(self, body: Callable, grid: tuple[int, int], inputs: list, outputs: list, shapes: list, scratch: list):
        """`pl.pallas_call` of a grid whose second axis is summed over."""
        return pl.pallas_call(
            partial(body, self.head),
            grid=grid,
            in_specs=inputs,
            out_specs=outputs,
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem()
            ),
            interpret=self.head.interpret,
        )


def _likelihood(call: _Call, hidden, kernel, targets) -> tuple[jax.Array, jax.Array]:
    specs = call.specs(lambda i, j: i, lambda i, j: j)
    grid, one = (call.tokens // call.tile[0], call.vocab // call.tile[1]), (call.tile[0], 1)
    shapes = [jax.ShapeDtypeStruct((call.tokens, 1), jnp.float32)] * 2
    inputs = [specs["hidden"], specs["kernel"], specs["token"]]
    run = call.run(_likelihood_body, grid, inputs, [specs["token"]] * 2, shapes, [one, one])
    return tuple(x[: call.count, 0] for x in run(hidden, kernel, targets))


def _likelihood_body(head: Head, hidden, kernel, targets, log_sum, chosen, top, total):
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _():
        chosen[...] = jnp.zeros_like(chosen)
        top[...] = jnp.full_like(top, -jnp.inf)
        total[...] = jnp.zeros_like(total)

    logits = head.logits(hidden[...], kernel[...])
    chosen[...] += jnp.sum(jnp.where(_is_target(logits, targets, j), logits, 0.0), axis=1, keepdims=True)
    above = jnp.maximum(top[...], jnp.max(logits, axis=1, keepdims=True))
    total[...] = total[...] * jnp.exp(top[...] - above) + jnp.sum(jnp.exp(logits - above), axis=1, keepdims=True)
    top[...] = above

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        log_sum[...] = top[...] + jnp.log(total[...])


def _d_hidden(call: _Call, *operands: jax.Array) -> jax.Array:
    specs = call.specs(lambda i, j: i, lambda i, j: j)
    grid = (call.tokens // call.tile[0], call.vocab // call.tile[1])
    shape = jax.ShapeDtypeStruct((call.tokens, call.width), operands[0].dtype)
    inputs = [specs[name] for name in ("hidden", "kernel", "token", "token", "token")]
    run = call.run(_d_hidden_body, grid, inputs, [specs["hidden"]], [shape], [(call.tile[0], call.width)])
    return run(*operands)[0][: call.count]


def _d_hidden_body(head: Head, hidden, kernel, targets, weight, log_sum, d_hidden, total):
    j = pl.program_id(1)
    d_logits = _d_logits(head, hidden, kernel, targets, weight, log_sum, j)
    _accumulate(j, total, head.d_hidden(d_logits, kernel[...]))

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        d_hidden[...] = total[...].astype(d_hidden.dtype)


def _d_kernel(call: _Call, *operands: jax.Array) -> jax.Array:
    specs = call.specs(lambda j, i: i, lambda j, i: j)
    grid = (call.vocab // call.tile[1], call.tokens // call.tile[0])
    shape = jax.ShapeDtypeStruct(operands[1].shape, jnp.float32)
    inputs = [specs[name] for name in ("hidden", "kernel", "token", "token", "token")]
    return call.run(_d_kernel_body, grid, inputs, [specs["kernel"]], [shape], [])(*operands)[0]


def _d_kernel_body(head: Head, hidden, kernel, targets, weight, log_sum, d_kernel):
    d_logits = _d_logits(head, hidden, kernel, targets, weight, log_sum, pl.program_id(0))
    _accumulate(pl.program_id(1), d_kernel, head.d_kernel(d_logits, hidden[...]))


def _accumulate(step, total, value) -> None:
    """Sum over the grid's second axis."""

    @pl.when(step == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    total[...] += value


def _d_logits(head: Head, hidden, kernel, targets, weight, log_sum, j) -> jax.Array:
    """Gradient of a tile's logits, in the dtype of hidden."""
    logits = head.logits(hidden[...], kernel[...])
    probability = jnp.exp(logits - log_sum[...])
    d_logits = jnp.where(_is_target(logits, targets, j), probability - 1.0, probability) * weight[...]
    return d_logits.astype(hidden.dtype)


def _is_target(logits, targets, j) -> jax.Array:
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + j * logits.shape[1]
    return columns == targets[...]


def _tiles(width: int, vocab: int, itemsize: int) -> Iterator[tuning.Blocks]:
    """Sides that fit VMEM, the most tokens first, so that the kernel is read as few times as can be."""
    for rows in _TOKENS:
        for columns in range(_VOCAB, 0, -LANES):
            if vocab % columns == 0 and _bytes(rows, columns, width, itemsize) <= vmem():
                yield {"tokens": rows, "vocab": columns}


def _bytes(rows: int, columns: int, width: int, itemsize: int) -> int:
    """At most in VMEM: blocks in and out are held twice, a sum beside its block, what is added to it, and the tile's
    logits and their like in float32 once."""
    inputs = 2 * (rows + columns) * width * itemsize + 6 * rows * LANES * 4
    d_hidden = (2 * itemsize + 4 + 4) * rows * width
    d_kernel = (2 * 4 + 4) * columns * width
    return inputs + max(d_hidden, d_kernel) + 4 * rows * columns * 4
