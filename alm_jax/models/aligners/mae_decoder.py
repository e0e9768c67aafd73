"""Audio-MAE's decoder, in an aligner's place while the encoder learns to see what is hidden from it (Huang et al. 2022,
"Masked autoencoders that listen"; ALM survey, equation 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import LayerNorm
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig, sinusoids
from alm_jax.models.encoders.htsat import SwinBlock


@dataclass(frozen=True)
class MaeDecoderConfig:
    """Sizes; the defaults are Audio-MAE's over a ViT-B.

    Attributes:
        dim: encoder width. grid: patches along (time, frequency). patch: edge of a patch, in frames and mels.
        hidden, heads, depth, mlp_ratio, norm_eps: of the decoder; blocks have plain and shifted windows by turns.
        window: edge of the windows inside which patches attend to one another, in patches.
        masked: share of the patches that is hidden, drawn anew for each clip and step.
        normalised: whether each patch is reconstructed with its own mean and deviation taken away.
    """

    dim: int = 768
    grid: tuple[int, int] = (64, 8)
    patch: int = 16
    hidden: int = 512
    heads: int = 16
    depth: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    window: int = 4
    masked: float = 0.8
    normalised: bool = True
    remat: stack.Remat = "none"

    def __post_init__(self):
        if self.depth < 2 or self.depth % 2:
            raise ConfigError(f"mae_decoder.depth is {self.depth}; expected an even number: plain and shifted windows")
        if any(edge % self.window for edge in self.grid):
            raise ConfigError(f"mae_decoder.window {self.window} does not divide the grid of patches {self.grid}")
        if not 0 < self.hidden_patches < self.patches:
            raise ConfigError(f"mae_decoder.masked is {self.masked}; expected a share that hides some patches, not all")

    def over(self, encoder: AudioMaeConfig) -> MaeDecoderConfig:
        """The same for the patches of an encoder.

        Raises:
            ConfigError: its patches overlap, so that what is hidden would be seen in its neighbours; or it normalises
                their mean instead of all of them.
        """
        if encoder.stride != encoder.patch or encoder.global_pool:
            raise ConfigError(
                f"Audio-MAE is pretrained with stride {encoder.patch}, its patch, and global_pool False; the encoder "
                f"has stride {encoder.stride}, global_pool {encoder.global_pool}"
            )
        return replace(self, dim=encoder.dim, grid=encoder.grid, patch=encoder.patch)

    @property
    def patches(self) -> int:
        """Patches of a clip."""
        return self.grid[0] * self.grid[1]

    @property
    def hidden_patches(self) -> int:
        """How many of them are hidden."""
        return self.patches - int(self.patches * (1 - self.masked))

    @property
    def tokens(self) -> int:
        """Patches of a clip."""
        return self.patches

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(K, T, D) of one slot's encoder features."""
        return 1, self.patches, self.dim


class Masks(NamedTuple):
    """Which patches of each clip are `seen` int [B, S] and `hidden` int [B, H], by their place in the grid."""

    seen: jax.Array
    hidden: jax.Array


class SwinPair(nnx.Module):
    """A block with plain and one with shifted windows: [B, T, F, hidden] -> [B, T, F, hidden]."""

    def __init__(self, c: MaeDecoderConfig, key: jax.Array):
        sizes, keys = (c.mlp_ratio, c.norm_eps), jax.random.split(key)
        self.plain = SwinBlock(c.hidden, c.heads, c.window, 0, *sizes, keys[0])
        self.shifted = SwinBlock(c.hidden, c.heads, c.window, c.window // 2, *sizes, keys[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.shifted(self.plain(x))


class MaeDecoder(nnx.Module):
    """What the encoder made of the patches that it saw -> the patches that it did not see."""

    def __init__(self, config: MaeDecoderConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 4)
        self.embed = Dense(c.dim, c.hidden, keys[0], axes=(ax.FEATURES, ax.EMBED))
        self.mask_token = init.normal(keys[1], (c.hidden,), (ax.EMBED,))
        self.pos_embed = init.Buffer(sinusoids(c.hidden, *c.grid)[1:], axes=(ax.POSITION, ax.EMBED))
        self.blocks = stack.build(lambda k: SwinPair(c, k), keys[2], c.depth // 2)
        self.norm = LayerNorm(c.hidden, c.norm_eps)
        self.pixels = Dense(c.hidden, c.patch**2, keys[3], axes=(ax.EMBED, ax.PATCH))
        self.config = config

    def draw(self, clips: int, key: jax.Array) -> Masks:
        """Masks of `clips` clips, uniformly at random; the same for the same key on any mesh."""
        noise = jax.random.uniform(key, (clips, self.config.patches))
        order = jnp.argsort(noise, axis=-1)
        return Masks(order[:, self.config.hidden_patches :], order[:, : self.config.hidden_patches])

    def __call__(self, seen: jax.Array, masks: Masks) -> jax.Array:
        """Encoded patches [B, S, dim] -> pixels of all patches [B, patches, patch**2]; only those hidden are learnt."""
        c, x = self.config, self.embed(seen)
        rows = jnp.arange(len(x))[:, None]
        whole = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), (len(x), c.patches, c.hidden))
        x = whole.at[rows, masks.seen].set(x) + self.pos_embed[...].astype(x.dtype)
        x = rearrange(x, "b (t f) d -> b t f d", t=c.grid[0])
        x, _ = stack.run(lambda pair, x, _: (pair(x), None), self.blocks, x, remat=c.remat)
        return self.pixels(self.norm(rearrange(x, "b t f d -> b (t f) d")))

    def reconstruction(self, encoder: AudioMae, frames: jax.Array, key: jax.Array) -> jax.Array:
        """Mean squared error float32 [B] over the hidden patches of each clip [B, frames, mels], under drawn masks."""
        masks = self.draw(len(frames), key)
        found = self(encoder.seen(frames, masks.seen), masks).astype(jnp.float32)
        error = jnp.square(found - self.targets(frames)).mean(-1)
        return jnp.take_along_axis(error, masks.hidden, axis=1).mean(1)

    def targets(self, frames: jax.Array) -> jax.Array:
        """[B, frames, mels] -> float32 [B, patches, patch**2], the values of a patch frame by frame."""
        p = self.config.patch
        x = rearrange(frames.astype(jnp.float32), "b (t p) (f q) -> b (t f) (p q)", p=p, q=p)
        if not self.config.normalised:
            return x
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
