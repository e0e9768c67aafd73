"""Kernels of linear layers that do not train, in 8 or 4 bits: only how they are stored; products are in the dtype of x.

int8 has one scale an output channel (LLM.int8's weights, Dettmers et al. 2022). NF4 has the sixteen values of QLoRA
(Dettmers et al. 2023, appendix E), quantiles of a normal distribution, and one scale a block of 64 inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.core.precision import Storage
from alm_jax.kernels.int8_matmul import int8_matmul
from alm_jax.layers.initializers import Buffer

BLOCK = 64
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Int8Kernel(nnx.Module):
    """Codes int8 [in, out] and scales float32 [out]: the kernel is their product."""

    def __init__(self, codes: jax.Array, scale: jax.Array, axes: tuple[str | None, str | None]):
        self.codes = Buffer(codes, axes=axes)
        self.scale = Buffer(scale, axes=axes[1:])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]; differentiable for x alone."""
        return int8_matmul(x, self.codes[...], self.scale[...], axes=_axes(self.codes))


class Nf4Kernel(nnx.Module):
    """Two codes a byte, uint8 [in / 2, out], and scales float32 [in / 64, out].

    Row r of a block's 32 rows of bytes holds inputs r (high bits) and r + 32 (low bits) of the block.
    """

    def __init__(self, codes: jax.Array, scale: jax.Array, axes: tuple[str | None, str | None]):
        self.codes = Buffer(codes, axes=axes)
        self.scale = Buffer(scale, axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]; differentiable for x alone."""
        # What FSDP divides is gathered as codes, not as the four times larger values.
        gathered = tuple(None if name == ax.EMBED else name for name in _axes(self.codes))
        return _nf4_matmul(x, *(constrain(part[...], *gathered) for part in (self.codes, self.scale)))


_KERNELS = {"int8": Int8Kernel, "nf4": Nf4Kernel}


def quantize(kernel: jax.Array, storage: Storage) -> dict[str, jax.Array]:
    """`codes` and `scale` of a kernel [..., in, out], or of a stack of them.

    Raises:
        ConfigError: NF4 of inputs that do not make whole blocks.
    """
    return _nf4(kernel) if storage == "nf4" else _int8(kernel)


def dequantize(codes: jax.Array, scale: jax.Array, storage: Storage) -> jax.Array:
    """The kernel float32 [..., in, out] that `quantize` made codes and scales of, as far as they tell it."""
    return _nf4_values(codes, scale) if storage == "nf4" else codes * scale[..., None, :]


def quantized(module: Any, paths: Iterable[str], storage: Storage) -> Any:
    """The module with the kernels of some of its `Dense` layers quantised.

    Args:
        paths: of kernels, `decoder.blocks.attn.q.kernel`, stacked or not.
    """
    module = jax.tree.map(lambda leaf: leaf, module)
    for path in paths:
        *parents, name = path.split(".")
        layer = reduce(getattr, parents, module)
        axes = getattr(layer, name).get_metadata()["axes"]
        setattr(layer, name, _KERNELS[storage](**quantize(getattr(layer, name)[...], storage), axes=axes))
    return module


def _axes(codes: nnx.Variable) -> tuple[str | None, str | None]:
    return codes.get_metadata()["axes"]


def _int8(kernel: jax.Array) -> dict[str, jax.Array]:
    kernel = kernel.astype(jnp.float32)
    scale = _positive(jnp.abs(kernel).max(-2) / 127)
    return {"codes": jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), "scale": scale}


def _nf4(kernel: jax.Array) -> dict[str, jax.Array]:
    *stack, inputs, outputs = kernel.shape
    if inputs % BLOCK:
        raise ConfigError(f"nf4 takes inputs in blocks of {BLOCK}, and a layer has {inputs}: take int8")
    blocks = kernel.astype(jnp.float32).reshape(*stack, inputs // BLOCK, BLOCK, outputs)
    scale = _positive(jnp.abs(blocks).max(-2))
    blocks /= scale[..., None, :]
    between = [(low + high) / 2 for low, high in pairwise(NF4)]
    codes = sum((blocks > border).astype(jnp.uint8) for border in between)
    high, low = jnp.split(codes, 2, axis=-2)
    return {"codes": (high << 4 | low).reshape(*stack, inputs // 2, outputs), "scale": scale}


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.where(scale > 0, scale, 1.0)


def _nf4_values(codes: jax.Array, scale: jax.Array) -> jax.Array:
    *stack, half, outputs = codes.shape
    codes = codes.reshape(*stack, 2 * half // BLOCK, BLOCK // 2, outputs)
    codes = jnp.concatenate([codes >> 4, codes & 15], axis=-2)
    values = [jnp.float32(value) for value in NF4]
    for bit in range(4):  # a tree of selections: a look-up would be a gather, which is slow on TPUs
        on = (codes >> bit & 1).astype(bool)
        values = [jnp.where(on, high, low) for low, high in zip(values[::2], values[1::2])]
    return (values[0] * scale[..., None, :]).reshape(*stack, 2 * half, outputs)


@jax.custom_vjp
def _nf4_matmul(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The backward pass makes the values again, so that none are kept from the forward pass."""
    return x @ _nf4_values(codes, scale).astype(x.dtype)


def _nf4_forward(x: jax.Array, codes: jax.Array, scale: jax.Array):
    return _nf4_matmul(x, codes, scale), (codes, scale)


def _nf4_backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    return dy @ _nf4_values(*residuals).astype(dy.dtype).T, None, None


_nf4_matmul.defvjp(_nf4_forward, _nf4_backward)
