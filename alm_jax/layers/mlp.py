"""Feed-forward blocks."""

from __future__ import annotations

import jax
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers.dense import Dense, Lora


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between: ViT, AST, Whisper."""

    def __init__(self, dim: int, hidden: int, key: jax.Array):
        up_key, down_key = jax.random.split(key)
        self.up = Dense(dim, hidden, up_key, axes=(ax.EMBED, ax.MLP))
        self.down = Dense(hidden, dim, down_key, axes=(ax.MLP, ax.EMBED))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim]."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


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
