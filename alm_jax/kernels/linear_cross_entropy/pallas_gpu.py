"""Pallas kernels for GPUs, through Triton: logits of a tile stay in registers; what leaves is their gradient, for some
tokens at a time, which goes into ordinary matrix products.

The compiler has only been asked to lower them: no GPU has run them, so `auto` does not take them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from alm_jax.core.mesh import platform
from alm_jax.kernels.linear_cross_entropy.chunked import over_chunks
from alm_jax.kernels.linear_cross_entropy.head import Head

_TOKENS, _VOCAB = 64, 128  # sides of a tile
_WIDTHS = (64, 32, 16)  # how much of the hidden width is multiplied at a time


def refusal(head: Head, width: int, vocab: int, dtype: Any) -> str | None:
    """Why these kernels cannot do a call, in words; None if they can."""
    if platform() != "gpu" and not head.interpret:
        return f"it needs a GPU, the platform is {platform()}"
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"it needs bfloat16, float16 or float32, got {jnp.dtype(dtype)}"
    if width % _WIDTHS[-1]:
        return f"it needs a width that is a multiple of {_WIDTHS[-1]}, got {width}"
    return None


def forward(head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `chunked.forward`."""

    def body(_, rows):
        return None, head.whole(*_likelihood(head, kernel, *rows))

    return over_chunks(head, kernel, body, None, hidden, targets)[1]


def gradients(
    head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weight: jax.Array, trains: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """As `chunked.gradients`."""

    def body(d_kernel, rows):
        hidden, targets, weight = rows
        log_sum, chosen = head.whole(*_likelihood(head, kernel, hidden, targets))
        d_logits = _d_logits(head, kernel, hidden, targets, weight, log_sum)
        if trains:
            d_kernel += head.d_kernel(d_logits, hidden)
        return d_kernel, (log_sum, chosen, head.d_hidden(d_logits, kernel).astype(hidden.dtype))

    zero = jnp.zeros(kernel.shape, jnp.float32) if trains else None
    d_kernel, (log_sum, chosen, d_hidden) = over_chunks(head, kernel, body, zero, hidden, targets, weight)
    return log_sum, chosen, d_hidden, d_kernel


def _likelihood(head: Head, kernel, hidden, targets) -> tuple[jax.Array, jax.Array]:
    """Each tile's own log of the sum of exponents and target's logit, then over the tiles of a token."""
    count, vocab = hidden.shape[0], kernel.shape[head.vocab_axis]
    columns = pl.cdiv(vocab, _VOCAB)
    shape = jax.ShapeDtypeStruct((columns, pl.cdiv(count, _TOKENS) * _TOKENS), jnp.float32)
    one = pl.BlockSpec((None, _TOKENS), lambda i, j: (j, i))
    log_sums, chosen = _run(head, _likelihood_body, hidden, kernel, (targets,), [one] * 2, [shape] * 2)
    return jax.nn.logsumexp(log_sums, axis=0)[:count], jnp.sum(chosen, axis=0)[:count]


def _likelihood_body(head: Head, vocab: int, hidden, kernel, targets, log_sum, chosen):
    logits, columns = _logits(head, vocab, hidden, kernel)
    top = jnp.max(logits, axis=1)
    log_sum[...] = top + jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=1))
    chosen[...] = jnp.sum(jnp.where(columns == targets[...][:, None], logits, 0.0), axis=1)


def _d_logits(head: Head, kernel, hidden, targets, weight, log_sum) -> jax.Array:
    count, vocab = hidden.shape[0], kernel.shape[head.vocab_axis]
    sides = [pl.cdiv(count, _TOKENS) * _TOKENS, pl.cdiv(vocab, _VOCAB) * _VOCAB]
    shape = jax.ShapeDtypeStruct(sides, hidden.dtype)
    tile = pl.BlockSpec((_TOKENS, _VOCAB), lambda i, j: (i, j))
    (found,) = _run(head, _d_logits_body, hidden, kernel, (targets, weight, log_sum), [tile], [shape])
    return found[:count, :vocab]


def _d_logits_body(head: Head, vocab: int, hidden, kernel, targets, weight, log_sum, d_logits):
    logits, columns = _logits(head, vocab, hidden, kernel)
    found = jnp.exp(logits - log_sum[...][:, None])
    found = jnp.where(columns == targets[...][:, None], found - 1.0, found) * weight[...][:, None]
    d_logits[...] = found.astype(d_logits.dtype)


def _run(head: Head, body, hidden, kernel, tokens: tuple[jax.Array, ...], outputs: list, shapes: list):
    """A grid of tiles; a tile sees its tokens and the whole kernel, of which it loads its columns."""
    more = -hidden.shape[0] % _TOKENS
    hidden, tokens = jnp.pad(hidden, ((0, more), (0, 0))), [jnp.pad(x, (0, more)) for x in tokens]
    vocab = kernel.shape[head.vocab_axis]
    token = pl.BlockSpec((_TOKENS,), lambda i, j: (i,))
    return pl.pallas_call(
        partial(body, head, vocab),
        grid=(hidden.shape[0] // _TOKENS, pl.cdiv(vocab, _VOCAB)),
        in_specs=[
            pl.BlockSpec((_TOKENS, hidden.shape[1]), lambda i, j: (i, 0)),
            pl.no_block_spec,
            *[token] * len(tokens),
        ],
        out_specs=outputs,
        out_shape=shapes,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=head.interpret,
    )(hidden, kernel, *tokens)


def _logits(head: Head, vocab: int, hidden, kernel) -> tuple[jax.Array, jax.Array]:
    """float32 logits of this program's tile, and their columns; -inf behind the vocabulary's end."""
    width = next(size for size in _WIDTHS if hidden.shape[1] % size == 0)
    first = pl.program_id(1) * _VOCAB
    shape = (width, _VOCAB) if head.vocab_axis else (_VOCAB, width)
    inside = first + jax.lax.broadcasted_iota(jnp.int32, shape, head.vocab_axis) < vocab

    def body(step, total):
        part, columns = pl.ds(step * width, width), pl.ds(first, _VOCAB)
        at = (part, columns) if head.vocab_axis else (columns, part)
        return total + head.logits(hidden[:, part], plgpu.load(kernel.at[at], mask=inside, other=0.0))

    total = jax.lax.fori_loop(0, hidden.shape[1] // width, body, jnp.zeros((_TOKENS, _VOCAB), jnp.float32))
    columns = first + jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
    return jnp.where(columns < vocab, total, -jnp.inf), columns
