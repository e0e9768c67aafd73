"""The linear layer, with LoRA as one of its properties."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers import initializers as init


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: y = Wx + alpha/rank * B(A(dropout(x))) (Hu et al. 2021; LTU: rank 8, alpha 16, q and v).

    Attributes:
        rank: r. alpha: scale numerator. dropout: on the adapter's input, in training.
        targets: shell-style patterns of the layers inside a block that get an adapter (`attn.q`, `mlp.*`).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("attn.q", "attn.v")

    def at(self, path: str) -> Lora | None:
        """This config if the layer at `path` inside its block is a target, else None."""
        return self if any(fnmatchcase(path, target) for target in self.targets) else None


class Dense(nnx.Module):
    """y = x @ kernel (+ bias) (+ LoRA): [..., in] -> [..., out], computed in the dtype of x.

    The kernel is `[in, out]`, or a module that multiplies x by one (`models.quantized`). Adapters are float32
    parameters over a base of any dtype; A is Kaiming-uniform, B zero.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        key: jax.Array,
        *,
        axes: tuple[str | None, str | None],
        bias: bool = True,
        lora: Lora | None = None,
        std: float = 0.02,
    ):
        kernel_key, lora_key = jax.random.split(key)
        self.kernel = init.normal(kernel_key, (features_in, features_out), axes, std)
        self.bias = init.zeros((features_out,), axes[1:]) if bias else None
        self.lora = lora
        if lora is not None:
            bound = features_in**-0.5
            a = jax.random.uniform(lora_key, (features_in, lora.rank), minval=-bound, maxval=bound)
            self.lora_a = nnx.LoRAParam(a, axes=(axes[0], ax.LORA))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, features_out)), axes=(ax.LORA, axes[1]))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[..., in] -> [..., out]; `key` turns the adapter's dropout on."""
        y = x @ self.kernel[...].astype(x.dtype) if isinstance(self.kernel, nnx.Variable) else self.kernel(x)
        if self.bias is not None:
            y += self.bias[...].astype(x.dtype)
        if self.lora is not None:
            branch = dropout(x, self.lora.dropout, key)
            branch = branch @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype)
            y += branch * (self.lora.alpha / self.lora.rank)
        return y


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of x and scale the rest up; the identity when `key` is None or the rate is 0."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
