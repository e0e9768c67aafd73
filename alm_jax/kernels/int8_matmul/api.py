"""Product with an int8 kernel; an implementation that is named never falls back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain, indivisible, mesh_axes, parts, per_device
from alm_jax.kernels.int8_matmul import reference

Implementation = Literal["auto", "reference", "pallas_tpu"]
Axes = tuple[str | None, str | None]


def int8_matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    *,
    axes: Axes = (None, None),
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> jax.Array:
    """x @ (codes * scale), without a copy of the kernel in the dtype of x.

    Under `jax.set_mesh` rows of x are divided as those of a batch and the kernel as its axes say, but for `embed`,
    along which it is gathered. Gradients go to x alone.

    Args:
        x: [B, ..., in]; its dtype is that of the product, whose sums are float32. codes: int8 [in, out].
        scale: float32 [out]. axes: logical names of the kernel's axes.
        implementation: `auto` is `reference`: XLA widens the codes inside the product (compiled for v5e, no temporary
            is a kernel in bfloat16), and no TPU has timed `pallas_tpu` against it.
        interpret: run the Pallas kernel by the interpreter, on any platform.

    Returns:
        [B, ..., out] in the dtype of x.

    Raises:
        ConfigError: the named implementation cannot do this call; the message says why.
    """
    gathered = tuple(None if name == ax.EMBED else name for name in axes)
    implementation = "reference" if implementation == "auto" else implementation
    if implementation == "pallas_tpu" and (why := _refusal(x, codes, gathered, interpret)):
        raise ConfigError(f"int8_matmul {implementation} cannot do this call: {why}")
    return _product(_Call(implementation, gathered, interpret), x, codes, scale)


@dataclass(frozen=True)
class _Call:
    """What is static: the implementation, and the logical axes of the kernel as it is multiplied."""

    implementation: str
    axes: Axes
    interpret: bool

    def run(self, name: str, x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """`forward` or `backward` of the implementation."""
        if self.implementation == "reference":
            return getattr(reference, name)(x, constrain(codes, *self.axes), scale)
        from alm_jax.kernels.int8_matmul import pallas_tpu

        before, after = self.axes if name == "forward" else self.axes[::-1]

        def local(x, codes, scale):
            flat = x.reshape(-1, x.shape[-1])
            y = getattr(pallas_tpu, name)(flat, codes, scale, self.interpret).reshape(*x.shape[:-1], -1)
            summed = mesh_axes(before) if before else ()
            return (jax.lax.psum(y, summed) if summed else y,)

        rows = _rows(x)
        return per_device(local, [(*rows, before), self.axes, self.axes[1:]], [(*rows, after)])(x, codes, scale)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(call: _Call, x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    return call.run("forward", x, codes, scale)


def _forward(call: _Call, x: jax.Array, codes: jax.Array, scale: jax.Array):
    return call.run("forward", x, codes, scale), (codes, scale)


def _backward(call: _Call, residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    return call.run("backward", dy, *residuals), None, None


_product.defvjp(_forward, _backward)


def _rows(x: jax.Array) -> tuple[str | None, ...]:
    """Logical axes of x but for the last: a batch's, where it has one."""
    return (ax.BATCH, ax.LENGTH, *[None] * (x.ndim - 3))[: x.ndim - 1]


def _refusal(x: jax.Array, codes: jax.Array, axes: Axes, interpret: bool) -> str | None:
    """Why the Pallas kernel cannot do a call, in words; None if it can."""
    if undivided := indivisible(x.shape, (*_rows(x), None)) or indivisible(codes.shape, axes):
        return undivided
    from alm_jax.kernels.int8_matmul import pallas_tpu

    inputs, outputs = (size // count for size, count in zip(codes.shape, parts(axes)))
    return pallas_tpu.refusal(inputs, outputs, x.dtype, interpret)
