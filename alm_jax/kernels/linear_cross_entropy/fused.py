"""Value and gradients of an implementation as one differentiable function, on one device or a mesh of them.

The gradients are made in the forward pass, where softmax and targets are at hand, and scaled in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from alm_jax.core import axes as ax
from alm_jax.core.mesh import mesh_axes, per_device
from alm_jax.kernels.linear_cross_entropy.head import Head

ROWS = (ax.BATCH, ax.LENGTH)


@dataclass(frozen=True)
class Call:
    """What is static: the module of the implementation, and the head, whose vocabulary each device has a part of."""

    implementation: Any
    vocab_axis: int
    interpret: bool

    @property
    def head(self) -> Head:
        return Head(self.vocab_axis, mesh_axes(ax.VOCAB), self.interpret)

    def kernel_axes(self, embed: str | None) -> tuple[str | None, str | None]:
        """Logical axes of the kernel; gathered along its width (`embed` None) where it is multiplied."""
        return (embed, ax.VOCAB) if self.vocab_axis else (ax.VOCAB, embed)

    @property
    def arguments(self) -> tuple[tuple[str | None, ...], ...]:
        return ((*ROWS, None), self.kernel_axes(None), ROWS, ROWS)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_sum(call: Call, hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
    """See `api.linear_cross_entropy`."""

    def local(hidden, kernel, targets, weight):
        head = call.head
        log_sum, chosen = call.implementation.forward(head, *_tokens(head, hidden, kernel, targets))
        return (_psum(jnp.sum((log_sum - chosen) * weight.reshape(-1)), _row_axes()),)

    return per_device(local, call.arguments, [()])(hidden, kernel, targets, weight)[0]


def _forward(call: Call, *primals: Any) -> tuple[jax.Array, Any]:
    hidden, kernel, targets, weight = (primal.value for primal in primals)
    trains = primals[1].perturbed

    def local(hidden, kernel, targets, weight):
        head = call.head
        tokens, flat = _tokens(head, hidden, kernel, targets), weight.reshape(-1)
        log_sum, chosen, d_hidden, d_kernel = call.implementation.gradients(head, *tokens, flat, trains)
        nll = log_sum - chosen
        d_hidden = _psum(d_hidden, head.mesh_axes).reshape(hidden.shape)
        results = (_psum(jnp.sum(nll * flat), _row_axes()), nll.reshape(targets.shape), d_hidden)
        return (*results, _sum_of_rows(d_kernel, 1 - call.vocab_axis).astype(kernel.dtype)) if trains else results

    results = [(), ROWS, (*ROWS, None), *([call.kernel_axes(ax.EMBED)] if trains else [])]
    value, *residuals = per_device(local, call.arguments, results)(hidden, kernel, targets, weight)
    return value, residuals


def _backward(call: Call, residuals: Any, cotangent: Any) -> tuple[jax.Array | None, ...]:
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    nll, d_hidden, *d_kernel = (x * cotangent.astype(x.dtype) for x in residuals)
    return d_hidden, d_kernel[0] if d_kernel else None, None, nll


weighted_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _tokens(head: Head, hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
    """Rows as tokens, the kernel in their dtype, targets as columns of this device's part of it, -1 where not in it."""
    targets = targets.reshape(-1) - head.first_token(kernel)
    mine = (targets >= 0) & (targets < kernel.shape[head.vocab_axis])
    return hidden.reshape(-1, hidden.shape[-1]), kernel.astype(hidden.dtype), jnp.where(mine, targets, -1)


def _row_axes() -> tuple[str, ...]:
    return mesh_axes(ax.BATCH) + mesh_axes(ax.LENGTH)


def _psum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _sum_of_rows(d_kernel: jax.Array, width_axis: int) -> jax.Array:
    """The sum over all rows, of which each device keeps the part that it has of the kernel."""
    kept = mesh_axes(ax.EMBED)
    d_kernel = _psum(d_kernel, tuple(axis for axis in _row_axes() if axis not in kept))
    return jax.lax.psum_scatter(d_kernel, kept, scatter_dimension=width_axis, tiled=True) if kept else d_kernel
