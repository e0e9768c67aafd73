"""Some tokens at a time, in plain JAX: logits of a chunk give its losses and, while they are there, its gradients.

As many matrix products as the reference has. (Liger Kernel, Hsu et al. 2024, makes gradients in the forward pass, too.)
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp

from alm_jax.kernels.linear_cross_entropy.head import Head

LOGITS = 2**24  # at most of a chunk: 64 MiB in float32,
ROWS = 256  # unless it would have fewer tokens than this, which keep no matrix unit busy


def refusal(head: Head, width: int, vocab: int, dtype: Any) -> None:
    """It can do every call."""


def forward(head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, D], kernel, int [N] -> float32 [N], [N]: log of the sum of exponents, and the target's logit (0 for -1)."""

    def body(_, rows):
        hidden, targets = rows
        return None, head.whole(*_likelihood(head.logits(hidden, kernel), targets))

    return over_chunks(head, kernel, body, None, hidden, targets)[1]


def gradients(
    head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weight: jax.Array, trains: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """What `forward` gives, and gradients of the sum of `weight` x loss: in the dtype of hidden [N, D], and in float32
    for the kernel if it `trains`; both are this device's share of a sum."""

    def body(d_kernel, rows):
        hidden, targets, weight = rows
        logits = head.logits(hidden, kernel)
        log_sum, chosen = head.whole(*_likelihood(logits, targets))
        d_logits = jnp.exp(logits - log_sum[:, None]) - (jnp.arange(logits.shape[1]) == targets[:, None])
        d_logits = (d_logits * weight[:, None]).astype(hidden.dtype)
        if trains:
            d_kernel += head.d_kernel(d_logits, hidden)
        return d_kernel, (log_sum, chosen, head.d_hidden(d_logits, kernel).astype(hidden.dtype))

    zero = jnp.zeros(kernel.shape, jnp.float32) if trains else None
    d_kernel, (log_sum, chosen, d_hidden) = over_chunks(head, kernel, body, zero, hidden, targets, weight)
    return log_sum, chosen, d_hidden, d_kernel


def over_chunks(head: Head, kernel: jax.Array, body: Callable, carry: Any, *rows: jax.Array) -> tuple[Any, Any]:
    """`jax.lax.scan` of `body` over chunks of arrays [N, ...]; what it stacks comes back as [N, ...]."""
    count = rows[0].shape[0]
    chunks = ceil(count / max(LOGITS // kernel.shape[head.vocab_axis], ROWS))
    if chunks <= 1:
        return body(carry, rows)
    size = ceil(count / chunks)
    more = chunks * size - count
    padded = [jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)]) for x in rows]  # of weight 0
    carry, stacked = jax.lax.scan(body, carry, tuple(x.reshape(chunks, size, *x.shape[1:]) for x in padded))
    return carry, jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], stacked)


def _likelihood(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1), jnp.where(targets >= 0, chosen, 0.0)
