"""HTS-AT, a Swin transformer over spectrograms (Chen et al. 2022; official `htsat.py`): the ears of both CLAPs."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.kernels.window_attention import window_attention
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.attention import Attention
from alm_jax.layers.dense import Dense
from alm_jax.layers.mlp import Mlp
from alm_jax.layers.norm import BatchNorm, LayerNorm
from alm_jax.models.features import Features, pool_steps


@dataclass(frozen=True)
class HtsatConfig:
    """Sizes; the defaults are those of MS-CLAP 2023 and of LAION's `clap-htsat-unfused`.

    Attributes:
        mels: filterbank channels. image: edge of the square into which a spectrogram is folded.
        patch, stride: edge of the square patches, and from one to the next.
        embed_dim: width of the first stage; each further one is twice as wide on a grid half as fine.
        depths, heads: of the stages; blocks have plain and shifted windows by turns.
        window: edge of the attention's windows, in patches. mlp_ratio, norm_eps: of the blocks.
        crop, crop_hop: frames of the windows into which a clip longer than the image is cut, and from one to the next.
        fusion: the input is a clip's whole, shrunk, and three of its parts (LAION's `clap-htsat-fused`).
        fusion_ratio: how much narrower the fusion's hidden layer is.
        classes: outputs of the token-semantic head; None leaves it out.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    mels: int = 64
    image: int = 256
    patch: int = 4
    stride: int = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    crop: int = 689
    crop_hop: int = 344
    fusion: bool = False
    fusion_ratio: int = 4
    classes: int | None = None
    remat: stack.Remat = "none"

    def __post_init__(self):
        problems = []
        if len(self.depths) != len(self.heads) or min(self.depths, default=0) < 1:
            problems.append(f"depths {self.depths}, heads {self.heads}: expected as many of each, no depth 0")
        if not 0 < self.mels <= self.image or self.image % self.chunks or self.grid[-1] % self.chunks:
            problems.append(f"mels {self.mels}: an image of {self.image} does not divide into chunks of them")
        if (self.image + 2 * self.padding - self.patch) // self.stride + 1 != self.grid[0]:
            problems.append(f"patches of {self.patch}, {self.stride} apart, do not fill an image of {self.image}")
        for stage, (edge, heads) in enumerate(zip(self.grid, self.heads)):
            if edge < 1 or edge % min(edge, self.window) or (stage and self.grid[stage - 1] % 2):
                problems.append(f"stage {stage} has a grid of {edge}: windows of {self.window} do not divide it")
            if self.dims[stage] % heads:
                problems.append(f"stage {stage}: {heads} heads do not divide its width {self.dims[stage]}")
        if problems:
            raise ConfigError("HTSAT: " + "; ".join(problems))

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.dims[-1]

    @property
    def grid(self) -> tuple[int, ...]:
        """Edge of the square of patches that each stage sees."""
        return tuple(self.image // self.stride // 2**stage for stage in range(len(self.depths)))

    @property
    def padding(self) -> int:
        """Zeros around the image, so that patches wider than the stride fit."""
        return (self.patch - self.stride) // 2

    @property
    def chunks(self) -> int:
        """Pieces of a spectrogram that lie below one another in the image."""
        return self.image // self.mels

    @property
    def frames(self) -> int:
        """Frames that an image holds; fewer are stretched to it."""
        return self.image * self.chunks


class WindowAttention(Attention):
    """Self-attention inside windows, with a learnt bias for each offset of query and key: [N, window**2, dim]."""

    def __init__(self, dim: int, heads: int, window: int, key: jax.Array):
        layers_key, bias_key = jax.random.split(key)
        super().__init__(dim, heads, layers_key)
        self.position_bias = init.normal(bias_key, ((2 * window - 1) ** 2, heads), (ax.POSITION, None))
        self.window = window

    def __call__(self, x: jax.Array, regions: jax.Array | None) -> jax.Array:
        """`regions`: as `kernels.window_attention.window_attention` takes them."""
        bias = rearrange(self.position_bias[...][_offsets(self.window)], "q k h -> h q k")
        out = window_attention(*self.split(x), bias, regions)
        return self.o(rearrange(out, "n l h d -> n l (h d)"))


class SwinBlock(nnx.Module):
    """Pre-norm block with attention inside windows, which may be shifted: [B, H, W, dim] -> [B, H, W, dim]."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, norm_eps: float, key):
        attn_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = WindowAttention(dim, heads, window, attn_key)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), mlp_key)
        self.window, self.shift = window, shift

    def __call__(self, x: jax.Array) -> jax.Array:
        (batch, height, width, _), p, shift = x.shape, self.window, self.shift
        y, regions = self.norm1(x), None
        if shift:
            y = jnp.roll(y, (-shift, -shift), axis=(1, 2))
            regions = jnp.asarray(shift_regions(height, width, p, shift))
        y = rearrange(y, "b (i p) (j q) d -> (b i j) (p q) d", p=p, q=p)
        y = self.attn(y, regions)
        y = rearrange(y, "(b i j) (p q) d -> b (i p) (j q) d", b=batch, i=height // p, p=p)
        y = jnp.roll(y, (shift, shift), axis=(1, 2)) if shift else y
        x = x + y
        return x + self.mlp(self.norm2(x))


class SwinPair(nnx.Module):
    """A block with plain and one with shifted windows; where one window covers the grid there is nothing to shift."""

    def __init__(self, c: HtsatConfig, stage: int, key: jax.Array):
        keys = jax.random.split(key)
        self.plain = _block(c, stage, False, keys[0])
        self.shifted = _block(c, stage, True, keys[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.shifted(self.plain(x))


def _block(c: HtsatConfig, stage: int, shifted: bool, key: jax.Array) -> SwinBlock:
    edge = c.grid[stage]
    shift = c.window // 2 if shifted and edge > c.window else 0
    return SwinBlock(c.dims[stage], c.heads[stage], min(c.window, edge), shift, c.mlp_ratio, c.norm_eps, key)


class PatchMerging(nnx.Module):
    """Each 2 x 2 neighbours become one of twice the width: [B, H, W, dim] -> [B, H / 2, W / 2, 2 dim]."""

    def __init__(self, dim: int, key: jax.Array):
        self.norm = LayerNorm(4 * dim)
        self.reduction = Dense(4 * dim, 2 * dim, key, axes=(ax.EMBED, None), bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = rearrange(x, "b (h row) (w col) d -> b h w (col row d)", row=2, col=2)
        return self.reduction(self.norm(x))


class Stage(nnx.Module):
    """Pairs of blocks on one grid, one more if their number is odd, then the way to the next grid, if there is any."""

    def __init__(self, c: HtsatConfig, stage: int, key: jax.Array):
        pairs_key, merge_key = jax.random.split(key)
        pairs, odd = divmod(c.depths[stage], 2)
        self.pairs = stack.build(lambda k: SwinPair(c, stage, k), pairs_key, pairs) if pairs else None
        # A stack of one, as all blocks are in stacks.
        self.unpaired = stack.build(lambda k: _block(c, stage, False, k), pairs_key, 1) if odd else None
        last = stage == len(c.depths) - 1
        self.merge = None if last else PatchMerging(c.dims[stage], merge_key)
        self.remat = c.remat

    def __call__(self, x: jax.Array) -> jax.Array:
        body = lambda layer, x, _: (constrain(layer(x), ax.BATCH, None, None, None), None)
        for layers in (self.pairs, self.unpaired):
            if layers is not None:
                x, _ = stack.run(body, layers, x, remat=self.remat)
        return x if self.merge is None else self.merge(x)


class PatchConv(nnx.Module):
    """A linear layer on patches of `size` (height, width), `stride` apart: [B, H, W] -> [B, H', W', dim]."""

    def __init__(self, size: tuple[int, int], stride: tuple[int, int], padding: int, dim: int, key: jax.Array):
        self.kernel = init.normal(key, (size[0] * size[1], dim), (ax.PATCH, ax.EMBED))
        self.bias = init.zeros((dim,), (ax.EMBED,))
        self.size, self.stride, self.padding = size, stride, ((padding, padding),) * 2

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, layout = self.kernel[...].astype(x.dtype).reshape(*self.size, 1, -1), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[..., None], kernel, self.stride, self.padding, dimension_numbers=layout)
        return y + self.bias[...].astype(x.dtype)


class ChannelAttention(nnx.Module):
    """Two linear layers with batch norm: [..., dim] -> [..., dim], before a sigmoid makes weights of them."""

    def __init__(self, dim: int, hidden: int, key: jax.Array):
        down_key, up_key = jax.random.split(key)
        self.down = Dense(dim, hidden, down_key, axes=(ax.EMBED, None))
        self.down_norm = BatchNorm(hidden)
        self.up = Dense(hidden, dim, up_key, axes=(None, ax.EMBED))
        self.up_norm = BatchNorm(dim, axis=ax.EMBED)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up_norm(self.up(jax.nn.relu(self.down_norm(self.down(x)))))


class Fusion(nnx.Module):
    """Attentional fusion of a clip's whole with three of its parts (LAION CLAP's `AFF`, Dai et al. 2021)."""

    def __init__(self, c: HtsatConfig, key: jax.Array):
        keys, hidden = jax.random.split(key, 3), c.embed_dim // c.fusion_ratio
        size, stride = (c.patch, 3 * c.patch), (c.stride, 3 * c.stride)  # three parts fill the width of the whole
        self.conv = PatchConv(size, stride, c.padding, c.embed_dim, keys[0])
        self.local = ChannelAttention(c.embed_dim, hidden, keys[1])
        self.whole = ChannelAttention(c.embed_dim, hidden, keys[2])

    def __call__(self, whole: jax.Array, parts: jax.Array) -> jax.Array:
        """Patches of the whole [B, H, W, dim], images of the parts [B, 3, side, side] -> [B, H, W, dim]."""
        local = rearrange(self.conv(rearrange(parts, "b n h w -> (b n) h w")), "(b n) h w d -> b h (n w) d", n=3)
        local = jnp.pad(local, ((0, 0), (0, 0), (0, whole.shape[2] - local.shape[2]), (0, 0)))
        both = whole + local
        weight = jax.nn.sigmoid(self.local(both) + self.whole(both.mean((1, 2), keepdims=True)))
        return 2 * whole * weight + 2 * local * (1 - weight)


class TokenSemanticHead(nnx.Module):
    """Convolution over three steps and all frequencies: [N, T, F, dim] -> logits of each step [N, T, classes]."""

    def __init__(self, frequencies: int, dim: int, classes: int, key: jax.Array):
        axes = (None, None, ax.EMBED, None)
        self.kernel = init.normal(key, (3, frequencies, dim, classes), axes, (3 * frequencies * dim) ** -0.5)
        self.bias = init.zeros((classes,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, layout = self.kernel[...].astype(x.dtype), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (0, 0)), dimension_numbers=layout)
        return y[:, :, 0] + self.bias[...].astype(x.dtype)


class Htsat(nnx.Module):
    """Log-mel frames in decibel [B, frames, mels] -> features, 32 steps of two frequency bins as published.

    With `fusion` the input is [B, 4, frames, mels], a clip's whole and three of its parts, and `longer` (bool [B]) says
    where the parts count; in the others the whole is all there is.
    """

    def __init__(self, config: HtsatConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, len(config.depths) + 3)
        self.norm0 = BatchNorm(c.mels)
        square = (c.patch, c.patch), (c.stride, c.stride)
        self.patch_embed = PatchConv(*square, c.padding, c.embed_dim, keys[0])
        self.fusion = Fusion(c, keys[1]) if c.fusion else None
        self.patch_norm = LayerNorm(c.embed_dim)
        self.stages = nnx.List([Stage(c, stage, key) for stage, key in enumerate(keys[3:])])
        self.norm = LayerNorm(c.dim)
        frequencies = c.grid[-1] // c.chunks
        self.head = None if c.classes is None else TokenSemanticHead(frequencies, c.dim, c.classes, keys[2])
        self.config = config

    def image(self, x: jax.Array) -> jax.Array:
        """[..., frames, mels] -> [..., image, image]: normalised, stretched, and its chunks laid below one another.

        Raises:
            ConfigError: more frames than an image holds, or another number of mels.
        """
        c, (frames, mels) = self.config, x.shape[-2:]
        if frames > c.frames or mels != c.mels:
            raise ConfigError(f"HTSAT takes at most {c.frames} frames of {c.mels} mels; got {frames} of {mels}")
        y = _stretch(self.norm0(x.astype(jnp.float32)), c.frames)
        y = _stretch(y.mT, c.image // c.chunks).mT
        return rearrange(y, "... (chunk t) m -> ... (chunk m) t", chunk=c.chunks).astype(x.dtype)

    def embed(self, images: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        """[B, image, image], or four of them with `fusion` -> patches [B, H, W, embed_dim]."""
        if self.fusion is None:
            return self.patch_norm(self.patch_embed(images))
        whole = self.patch_embed(images[:, 0])
        if longer is not None:
            fused = self.fusion(whole, images[:, 1:])
            whole = jnp.where(longer.reshape(-1, 1, 1, 1).astype(bool), fused, whole)
        return self.patch_norm(whole)

    def windows(self, x: jax.Array) -> jax.Array:
        """[B, ..., frames, mels] -> windows of at most an image [B, S, ..., T, mels]: one, or those of a long clip."""
        c, frames = self.config, x.shape[-2]
        if frames <= c.frames:
            return x[:, None]
        starts = range(0, frames - c.crop - 1, c.crop_hop)
        return jnp.stack([x[..., start : start + c.crop, :] for start in starts], axis=1)

    def steps(self, x: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        """[B, frames, mels] -> [B, S, T, F, dim]: windows, steps in them, frequencies."""
        x = self.windows(x)
        batch, windows = x.shape[:2]
        longer = None if longer is None else jnp.repeat(longer.reshape(batch), windows)
        x = self.embed(self.image(x.reshape(-1, *x.shape[2:])), longer)
        x = constrain(x, ax.BATCH, None, None, None)
        for stage in self.stages:
            x = stage(x)
        return rearrange(self.norm(x), "(b s) (chunk f) t d -> b s (chunk t) f d", b=batch, chunk=self.config.chunks)

    def __call__(self, x: jax.Array, taps: tuple[int, ...] | None = None, pool: int = 1) -> Features:
        """[B, frames, mels] -> Features [1, B, T * F / pool, dim], the frequencies of a step beside one another.

        Raises:
            ConfigError: taps are asked for; the stages have unequal widths, so that they have no common shape.
        """
        if taps is not None:
            raise ConfigError(f"HTSAT has no taps, its stages being of unequal widths; got taps={taps}: leave it None")
        return Features(pool_steps(rearrange(self.steps(x), "b s t f d -> b (s t f) d"), pool)[None])

    def pooled(self, x: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        """[B, frames, mels] -> embeddings of clips [B, dim], the mean of all features (`latent_output`)."""
        return self.steps(x, longer).mean((1, 2, 3))

    def classify(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, frames, mels] -> probabilities of clips [B, classes] and of steps [B, T, classes], where there is a head.

        Those of a long clip are means over its windows, as the official code has them.
        """
        steps = self.steps(x)
        logits = self.head(rearrange(steps, "b s t f d -> (b s) t f d"))
        logits = rearrange(logits, "(b s) t c -> b s t c", b=x.shape[0])
        return jax.nn.sigmoid(logits.mean(2)).mean(1), jax.nn.sigmoid(logits).mean(1)


def _offsets(window: int) -> np.ndarray:
    """int [window**2, window**2]: the row of the bias table for each query and key of a window."""
    place = np.stack(np.divmod(np.arange(window**2), window))
    offset = place[:, :, None] - place[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def shift_regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """int [windows, window**2] above 0: places that were neighbours before the grid was rolled by `shift` agree."""

    def along(size: int) -> np.ndarray:
        place = np.arange(size)
        return (place >= size - window).astype(np.int32) + (place >= size - shift)

    regions = 1 + 3 * along(height)[:, None] + along(width)
    return rearrange(regions, "(i p) (j q) -> (i j) (p q)", p=window, q=window)


def _stretch(x: jax.Array, size: int) -> jax.Array:
    """[..., n, m] -> [..., size, m] by bicubic interpolation where n is less."""
    return jnp.einsum("...nm,sn->...sm", x, _cubic(x.shape[-2], size), precision="highest") if x.shape[-2] < size else x


def _cubic(source: int, target: int) -> np.ndarray:
    """float32 [target, source]: bicubic interpolation that keeps both ends, `interpolate(..., align_corners=True)`.

    Places are computed in float32 as PyTorch does: at frame 965 their rounding shows in the result.
    """
    place = np.arange(target, dtype=np.float32) * (np.float32(source - 1) / np.float32(target - 1))
    first = np.floor(place)
    away = np.abs((place - first)[:, None] - np.arange(-1, 3, dtype=np.float32))  # of four neighbours
    a = -0.75  # PyTorch's
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    neighbours = np.clip(first.astype(int)[:, None] + np.arange(-1, 3), 0, source - 1)
    weights = np.zeros((target, source), np.float32)
    np.add.at(weights, (np.arange(target)[:, None], neighbours), np.where(away <= 1, near, far))
    return weights
