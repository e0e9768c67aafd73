"""CLAP, audio and text in one space: MS-CLAP 2023 (Elizalde et al. 2023; official `msclap/models/clap.py`), MATS's ears
and its stand-in for them, and LAION CLAP (Wu et al. 2023; `transformers` `ClapModel`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from alm_jax.audio.frontend import KaldiFbank, LibrosaLogMel, WhisperLogMel
from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.layers.dense import Dense, dropout
from alm_jax.layers.norm import LayerNorm, layer_norm
from alm_jax.models.contrast import unit
from alm_jax.models.decoders.gpt2 import Gpt2, Gpt2Config
from alm_jax.models.encoders.ast import Ast, AstConfig
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig
from alm_jax.models.encoders.beats import Beats, BeatsConfig
from alm_jax.models.encoders.cnn14 import Cnn14, Cnn14Config
from alm_jax.models.encoders.htsat import Htsat, HtsatConfig
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from alm_jax.models.features import Features
from alm_jax.models.text.bert import Bert, BertConfig, mean_of_tokens

TEXT_END = " <|endoftext|>"  # what MS-CLAP puts behind every text
TEXT_LENGTH = 77  # tokens to which it fills texts up, with the id of "!"

AudioConfig = HtsatConfig | WhisperConfig | AstConfig | AudioMaeConfig | BeatsConfig | Cnn14Config
_AUDIO = {
    HtsatConfig: Htsat,
    WhisperConfig: Whisper,
    AstConfig: Ast,
    AudioMaeConfig: AudioMae,
    BeatsConfig: Beats,
    Cnn14Config: Cnn14,
}
TextConfig = Gpt2Config | BertConfig
ProjectionKind = Literal["residual", "mlp"]
_BEGIN = {"softmax": (log(1 / 0.07), None), "sigmoid": (log(10.0), -10.0)}  # logit_scale and logit_bias, as published


class Space(NamedTuple):
    """How a tower's output gets to the common space.

    Attributes:
        dim: its width. projection: `residual`, two linear layers around a skip and a norm, `mlp`, or None where the
            output is the embedding. dropout: in the projection, in training.
    """

    dim: int
    projection: ProjectionKind | None
    dropout: float

    def check(self, **widths: int) -> None:
        """
        Raises:
            ConfigError: there is no projection, and the towers' outputs have other widths than the space.
        """
        if self.projection is None and set(widths.values()) != {self.dim}:
            given = ", ".join(f"{tower} has width {width}" for tower, width in widths.items())
            raise ConfigError(
                f"CLAP: {given}, the common space {self.dim}, and projection is None: make them equal, or give a "
                "projection (residual or mlp)"
            )


@dataclass(frozen=True)
class ClapConfig:
    """Two towers; the defaults are MS-CLAP 2023's.

    Attributes:
        audio: the audio tower's encoder. text: the text tower's; GPT-2 is read at the last token, BERT (RoBERTa) at the
            first, or as the mean of all tokens where it has no `pooler` (sentence encoders).
        dim: width of the common space.
        projection: how a tower's output gets there (`Space`).
        scales: learnt scales of similarities: 1, or 2, the first for audio against texts, the second for the converse.
        frontend: waveform to frames; with fusion by `audio.fused_log_mel`.
        taps: layers of the encoder that are heard, side by side and each normalised; None for its own output.
        pool: steps of the encoder averaged into one, before all are.
        contrast: what it was or will be trained with: `softmax` (InfoNCE), or `sigmoid` (SigLIP), with a learnt bias.
        dropout: in projections, in training; MS-CLAP's.
    """

    audio: AudioConfig = HtsatConfig(classes=527)
    text: TextConfig = Gpt2Config()
    dim: int = 1024
    projection: ProjectionKind | None = "residual"
    scales: Literal[1, 2] = 1
    frontend: LibrosaLogMel | WhisperLogMel | KaldiFbank = field(default=LibrosaLogMel())
    taps: tuple[int, ...] | None = None
    pool: int = 1
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    dropout: float = 0.5

    def __post_init__(self):
        self.space.check(audio=self.audio.dim * len(self.taps or (0,)), text=self.text.dim)

    @property
    def space(self) -> Space:
        """The common space."""
        return Space(self.dim, self.projection, self.dropout)

    @property
    def text_gap(self) -> str:
        """What stands between a text and its ending: MS-CLAP's texts end in `TEXT_END`."""
        return " " if isinstance(self.text, Gpt2Config) else ""


@dataclass(frozen=True)
class LaionClapConfig(ClapConfig):
    """The same with the defaults of LAION's `clap-htsat-unfused`."""

    audio: AudioConfig = HtsatConfig()
    text: TextConfig = BertConfig(vocab_size=50265, positions=514, position_offset=2, token_types=1)
    dim: int = 512
    projection: ProjectionKind | None = "mlp"
    scales: Literal[1, 2] = 2
    frontend: LibrosaLogMel | WhisperLogMel | KaldiFbank = field(
        default=LibrosaLogMel(48000, None, hop=480, seconds=10.0, padding="repeatpad")
    )
    dropout: float = 0.0


LAION_CLAP_FUSED = LaionClapConfig(
    audio=HtsatConfig(fusion=True), frontend=replace(LaionClapConfig().frontend, mel_scale="htk")
)


class Projection(nnx.Module):
    """A tower's output [B, features] -> [B, dim]."""

    def __init__(self, features: int, space: Space, key: jax.Array):
        keys, residual = jax.random.split(key), space.projection == "residual"
        self.linear1 = Dense(features, space.dim, keys[0], axes=(ax.EMBED, None), bias=not residual)
        self.linear2 = Dense(space.dim, space.dim, keys[1], axes=(ax.EMBED, None), bias=not residual)
        self.norm = LayerNorm(space.dim) if residual else None
        self.rate = space.dropout

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """`key` turns dropout on."""
        x = self.linear1(x)
        if self.norm is None:
            return self.linear2(dropout(jax.nn.relu(x), self.rate, key))
        return self.norm(x + dropout(self.linear2(jax.nn.gelu(x, approximate=False)), self.rate, key))


class AudioHead(nnx.Module):
    """Features of clips -> their embeddings: what is over the encoder in an audio tower."""

    def __init__(self, features: int, space: Space, key: jax.Array):
        self.projection = None if space.projection is None else Projection(features, space, key)

    def __call__(self, features: Features, key: jax.Array | None = None) -> jax.Array:
        """[K, B, T, D] -> [B, dim], from the mean over the steps; of several layers each is normalised first."""
        x = features.values
        x = rearrange((layer_norm(x) if len(x) > 1 else x).mean(2), "k b d -> b (k d)")
        return x if self.projection is None else self.projection(x, key)


class AudioTower(AudioHead):
    """Frames of the front end -> embeddings of clips."""

    def __init__(self, config: ClapConfig, key: jax.Array):
        keys = jax.random.split(key)
        super().__init__(config.audio.dim * len(config.taps or (0,)), config.space, keys[1])
        self.encoder = _AUDIO[type(config.audio)](config.audio, keys[0])
        self.clap = config

    def __call__(self, x: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        """[B, frames, mels] -> [B, dim]; with fusion [B, 4, frames, mels] and `longer` bool [B] (`Htsat`)."""
        if longer is not None:
            return self.projection(self.encoder.pooled(x, longer))
        return super().__call__(self.encoder(x, self.clap.taps, self.clap.pool))


class TextTower(nnx.Module):
    """Token ids -> embeddings of texts."""

    def __init__(self, config: ClapConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.encoder = (Gpt2 if isinstance(config.text, Gpt2Config) else Bert)(config.text, keys[0])
        self.projection = None if config.projection is None else Projection(config.text.dim, config.space, keys[1])

    def hidden(self, ids: jax.Array, mask: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """int [B, L] ids and mask (0 at padding) -> hidden states [B, L, width] of the last block."""
        if isinstance(self.encoder, Bert):
            return self.encoder(ids, mask, dtype=dtype)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        x = self.encoder.embed(ids, dtype)
        return self.encoder(x, positions, jnp.ones_like(positions), jnp.asarray(mask, jnp.int32))

    def pooled(self, ids: jax.Array, mask: jax.Array, hidden: jax.Array) -> jax.Array:
        """Hidden states -> one a text [B, width]."""
        if not isinstance(self.encoder, Bert):
            return hidden[jnp.arange(len(ids)), last_token(ids)]
        return self.encoder.pooled(hidden) if self.encoder.config.pooler else mean_of_tokens(hidden, mask)

    def __call__(
        self, ids: jax.Array, mask: jax.Array, dtype: jnp.dtype = jnp.float32, key: jax.Array | None = None
    ) -> jax.Array:
        """int [B, L] ids and mask (0 at padding) -> [B, dim] in the compute dtype `dtype`; `key` turns dropout on."""
        x = self.pooled(ids, mask, self.hidden(ids, mask, dtype))
        return x if self.projection is None else self.projection(x, key)


class Similarity(nnx.Module):
    """What is learnt of comparing: `logit_scale`, the logarithm of the scale, and `logit_bias` of a sigmoid."""

    def __init__(self, scales: int, contrast: str):
        scale, bias = _BEGIN[contrast]
        self.logit_scale = nnx.Param(jnp.full((scales,), scale), axes=(None,))
        self.logit_bias = None if bias is None else nnx.Param(jnp.full((1,), bias), axes=(None,))


class Clap(Similarity):
    """Embeddings of clips and of texts, and how well they fit."""

    def __init__(self, config: ClapConfig, key: jax.Array):
        keys = jax.random.split(key)
        super().__init__(config.scales, config.contrast)
        self.audio = AudioTower(config, keys[0])
        self.text = TextTower(config, keys[1])
        self.config = config

    def encode_audio(self, x: jax.Array, longer: jax.Array | None = None, *, normalise: bool = False) -> jax.Array:
        """Embeddings of clips [B, dim].

        Args:
            x: log-mel frames [B, frames, mels] of `config.frontend`; with fusion [B, 4, frames, mels].
            longer: with fusion, bool [B], whether the last three of them count.
            normalise: scale embeddings to length 1; MATS takes them as they are.
        """
        embeddings = self.audio(x, longer)
        return unit(embeddings) if normalise else embeddings

    def encode_text(
        self, ids: jax.Array, mask: jax.Array, *, normalise: bool = False, dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """Embeddings of texts [B, dim] in the compute dtype `dtype`.

        Args:
            ids, mask: int [B, L] of `text_batch`. normalise: scale embeddings to length 1.

        Raises:
            ConfigError: the texts are longer than the tower's table of positions.
        """
        embeddings = self.text(ids, mask, dtype)
        return unit(embeddings) if normalise else embeddings

    def logits(self, audio: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeddings [A, dim] and [T, dim] -> scaled cosines float32 [A, T], of each clip to every text, and [T, A];
        with the bias of a sigmoid, if there is one."""
        audio, text = (unit(x.astype(jnp.float32)) for x in (audio, text))
        cosine, scale = audio @ text.T, jnp.exp(self.logit_scale[...])
        bias = 0.0 if self.logit_bias is None else self.logit_bias[...]
        return scale[0] * cosine + bias, scale[-1] * cosine.T + bias


def last_token(ids: jax.Array) -> jax.Array:
    """Place int [B] at which MS-CLAP reads a text: one less than its ids other than 0.

    0 is its padding and also the token "!": each "!" in a text moves the place one token away from the text's end
    (official `TextEncoder`).
    """
    return (ids != 0).sum(-1) - 1


def text_batch(
    rows: Sequence[Sequence[int]], length: int = TEXT_LENGTH, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of texts -> (ids, mask) int32 [B, L], filled up on the right to `length`, or to the longest text.

    The defaults are MS-CLAP's, whose texts end in `TEXT_END`; its code fails where some texts of a batch have more than
    77 tokens. RoBERTa's padding is 1. Filling up changes no embedding.
    """
    length = max([length, *map(len, rows)])
    ids = np.full((len(rows), length), padding, np.int32)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
