"""Feed-forward blocks."""

from __future__ import annotations

from typing import Literal

import jax
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers.dense import Dense, Lora

Activation = Literal["gelu", "gelu_tanh", "relu"]


def activate(x: jax.Array, kind: Activation) -> jax.Array:
    """`gelu` is the exact one (erf), `gelu_tanh` its approximation (`gelu_new` in `transformers`)."""
    return jax.nn.relu(x) if kind == "relu" else jax.nn.gelu(x, approximate=kind == "gelu_tanh")


class Mlp(nnx.Module):
    """Two linear layers with an activation between: ViT, AST, Whisper, BERT, GPT-2."""

    def __init__(
        self, dim: int, hidden: int, key: jax.Array, *, activation: Activation = "gelu", lora: Lora | None = None
    ):
        up_key, down_key = jax.random.split(key)
        adapter = lora.at if lora else lambda path: None
        self.up = Dense(dim, hidden, up_key, axes=(ax.EMBED, ax.MLP), lora=adapter("mlp.up"))
        self.down = Dense(hidden, dim, down_key, axes=(ax.MLP, ax.EMBED), lora=adapter("mlp.down"))
        self.activation = activation

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[..., dim] -> [..., dim]; `key` turns adapter dropout on."""
        keys = (None, None) if key is None else jax.random.split(key)
        return self.down(activate(self.up(x, keys[0]), self.activation), keys[1])


class GatedMlp(nnx.Module):
    """down(silu(gate(x)) * up(x)) without biases: LLaMA."""

    def __init__(self, dim: int, hidden: int, key: jax.Array, lora: Lora | None = None):
        keys = jax.random.split(key, 3)
        adapter = lora.at if lora else lambda path: None
        self.gate = Dense(dim, hidden, keys[0], axes=(ax.EMBED, ax.MLP), bias=False, lora=adapter("mlp.gate"))
        self.up = Dense(dim, hidden, keys[1], axes=(ax.EMBED, ax.MLP), bias=False, lora=adapter("mlp.up"))
        self.down = Dense(hidden, dim, keys[2], axes=(ax.MLP, ax.EMBED), bias=False, lora=adapter("mlp.down"))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[..., dim] -> [..., dim]; `key` turns adapter dropout on."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        return self.down(jax.nn.silu(self.gate(x, keys[0])) * self.up(x, keys[1]), keys[2])
