"""PANNs CNN14 (Kong et al. 2020; official `pytorch/models.py`, `Cnn14`), by the statistics gathered in training."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.layers import initializers as init
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import BatchNorm
from alm_jax.models.features import Features, pool_steps


@dataclass(frozen=True)
class Cnn14Config:
    """Sizes; the defaults are the published ones.

    Attributes:
        mels: filterbank channels. channels: of the blocks; every block but the last halves time and frequency.
        classes: outputs of the classifier; None leaves it and the embedding layer before it out.
    """

    mels: int = 64
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    classes: int | None = None

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.channels[-1]


class Conv2d(nnx.Module):
    """3 x 3 convolution without a bias: [B, T, F, in] -> [B, T, F, out]."""

    def __init__(self, features_in: int, features_out: int, key: jax.Array):
        std = (9 * features_in) ** -0.5
        self.kernel = init.normal(key, (3, 3, features_in, features_out), (None, None, ax.PATCH, ax.EMBED), std)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, layout = self.kernel[...].astype(x.dtype), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


class ConvBlock(nnx.Module):
    """Twice convolution, batch norm and ReLU: [B, T, F, in] -> [B, T, F, out]."""

    def __init__(self, features_in: int, features_out: int, key: jax.Array):
        keys = jax.random.split(key)
        self.conv1 = Conv2d(features_in, features_out, keys[0])
        self.norm1 = BatchNorm(features_out, axis=ax.EMBED)
        self.conv2 = Conv2d(features_out, features_out, keys[1])
        self.norm2 = BatchNorm(features_out, axis=ax.EMBED)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(x)))


class Cnn14(nnx.Module):
    """Log-mel frames in decibel [B, T, mels] -> features, one for 32 frames (0.32 s as published)."""

    def __init__(self, config: Cnn14Config, key: jax.Array):
        c, keys = config, jax.random.split(key, len(config.channels) + 2)
        self.norm = BatchNorm(c.mels)
        sizes = zip((1, *c.channels), c.channels, keys)
        self.blocks = nnx.List([ConvBlock(*size) for size in sizes])
        headed = c.classes is not None
        self.embedding = Dense(c.dim, c.dim, keys[-2], axes=(ax.EMBED, None)) if headed else None
        self.head = Dense(c.dim, c.classes, keys[-1], axes=(ax.EMBED, None)) if headed else None
        self.config = config

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, T, mels] -> Features [1, B, T / 32 / pool, dim], averaged over frequency.

        Raises:
            ConfigError: taps are asked for; the blocks have unequal widths, so that they have no common shape.
        """
        if taps is not None:
            raise ConfigError(f"CNN14 has no taps, its blocks being of unequal widths; got taps={taps}: leave it None")
        x = self.norm(x)[..., None]
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            x = block(constrain(x, ax.BATCH, ax.LENGTH, None, None))
            x = x if index == last else _halve(x)
        return Features(pool_steps(x.mean(2), pool)[None])

    def pooled(self, x: jax.Array) -> jax.Array:
        """[B, T, mels] -> embeddings of clips [B, dim]; for models with a classifier."""
        steps = self(x).values[0]
        return jax.nn.relu(self.embedding(steps.max(1) + steps.mean(1)))

    def classify(self, x: jax.Array) -> jax.Array:
        """[B, T, mels] -> logits [B, classes] (the official output is their sigmoid); for models with a classifier."""
        return self.head(self.pooled(x))


def _halve(x: jax.Array) -> jax.Array:
    """Mean of 2 x 2 neighbours: [B, T, F, C] -> [B, T / 2, F / 2, C]; a ragged end is left out."""
    batch, time, frequency, channels = x.shape
    x = x[:, : time // 2 * 2, : frequency // 2 * 2]
    return x.reshape(batch, time // 2, 2, frequency // 2, 2, channels).mean((2, 4))
