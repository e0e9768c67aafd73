"""CLAP, audio and text in one space: MS-CLAP 2023 (Elizalde et al. 2023; official `msclap/models/clap.py`), MATS's ears
and its stand-in for them, and LAION CLAP (Wu et al. 2023; `transformers` `ClapModel`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.audio.frontend import LibrosaLogMel
from alm_jax.core import axes as ax
from alm_jax.layers.dense import Dense
from alm_jax.layers.norm import LayerNorm
from alm_jax.models.decoders.gpt2 import Gpt2, Gpt2Config
from alm_jax.models.encoders.htsat import Htsat, HtsatConfig
from alm_jax.models.text.bert import Bert, BertConfig

TEXT_END = " <|endoftext|>"  # what MS-CLAP puts behind every text
TEXT_LENGTH = 77  # tokens to which it fills texts up, with the id of "!"


@dataclass(frozen=True)
class ClapConfig:
    """Two towers; the defaults are MS-CLAP 2023's.

    Attributes:
        audio: the audio tower. text: the text tower; GPT-2 is read at the last token, BERT (RoBERTa) at the first.
        dim: width of the common space.
        projection: how a tower's output gets there: `residual`, two linear layers around a skip and a norm, or `mlp`.
        scales: learnt scales of similarities: 1, or 2, the first for audio against texts, the second for the converse.
        frontend: waveform to frames; with fusion by `audio.fused_log_mel`.
    """

    audio: HtsatConfig = HtsatConfig(classes=527)
    text: Gpt2Config | BertConfig = Gpt2Config()
    dim: int = 1024
    projection: Literal["residual", "mlp"] = "residual"
    scales: Literal[1, 2] = 1
    frontend: LibrosaLogMel = field(default=LibrosaLogMel())


@dataclass(frozen=True)
class LaionClapConfig(ClapConfig):
    """The same with the defaults of LAION's `clap-htsat-unfused`."""

    audio: HtsatConfig = HtsatConfig()
    text: BertConfig = BertConfig(vocab_size=50265, positions=514, position_offset=2, token_types=1)
    dim: int = 512
    projection: Literal["residual", "mlp"] = "mlp"
    scales: Literal[1, 2] = 2
    frontend: LibrosaLogMel = field(default=LibrosaLogMel(48000, None, hop=480, seconds=10.0, padding="repeatpad"))


LAION_CLAP_FUSED = LaionClapConfig(
    audio=HtsatConfig(fusion=True), frontend=replace(LaionClapConfig().frontend, mel_scale="htk")
)


class Projection(nnx.Module):
    """A tower's output [B, features] -> [B, dim]."""

    def __init__(self, features: int, config: ClapConfig, key: jax.Array):
        keys, residual = jax.random.split(key), config.projection == "residual"
        self.linear1 = Dense(features, config.dim, keys[0], axes=(ax.EMBED, None), bias=not residual)
        self.linear2 = Dense(config.dim, config.dim, keys[1], axes=(ax.EMBED, None), bias=not residual)
        self.norm = LayerNorm(config.dim) if residual else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear1(x)
        if self.norm is None:
            return self.linear2(jax.nn.relu(x))
        return self.norm(x + self.linear2(jax.nn.gelu(x, approximate=False)))


class AudioTower(nnx.Module):
    """Log-mel frames in decibel -> embeddings of clips."""

    def __init__(self, config: ClapConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.encoder = Htsat(config.audio, keys[0])
        self.projection = Projection(config.audio.dim, config, keys[1])

    def __call__(self, x: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        """[B, frames, mels] -> [B, dim]; with fusion [B, 4, frames, mels] and `longer` bool [B] (`Htsat`)."""
        return self.projection(self.encoder.pooled(x, longer))


class TextTower(nnx.Module):
    """Token ids -> embeddings of texts."""

    def __init__(self, config: ClapConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.encoder = (Gpt2 if isinstance(config.text, Gpt2Config) else Bert)(config.text, keys[0])
        self.projection = Projection(config.text.dim, config, keys[1])

    def hidden(self, ids: jax.Array, mask: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """int [B, L] ids and mask (0 at padding) -> hidden states [B, L, width] of the last block."""
        if isinstance(self.encoder, Bert):
            return self.encoder(ids, mask, dtype=dtype)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        x = self.encoder.embed(ids, dtype)
        return self.encoder(x, positions, jnp.ones_like(positions), jnp.asarray(mask, jnp.int32))

    def pooled(self, ids: jax.Array, hidden: jax.Array) -> jax.Array:
        """Hidden states -> one a text [B, width]."""
        if isinstance(self.encoder, Bert):
            return self.encoder.pooled(hidden)
        return hidden[jnp.arange(len(ids)), last_token(ids)]

    def __call__(self, ids: jax.Array, mask: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """int [B, L] ids and mask (0 at padding) -> [B, dim] in the compute dtype `dtype`."""
        return self.projection(self.pooled(ids, self.hidden(ids, mask, dtype)))


class Clap(nnx.Module):
    """Embeddings of clips and of texts, and how well they fit."""

    def __init__(self, config: ClapConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.audio = AudioTower(config, keys[0])
        self.text = TextTower(config, keys[1])
        self.logit_scale = nnx.Param(jnp.full((config.scales,), log(1 / 0.07)), axes=(None,))
        self.config = config

    def encode_audio(self, x: jax.Array, longer: jax.Array | None = None, *, normalise: bool = False) -> jax.Array:
        """Embeddings of clips [B, dim].

        Args:
            x: log-mel frames [B, frames, mels] of `config.frontend`; with fusion [B, 4, frames, mels].
            longer: with fusion, bool [B], whether the last three of them count.
            normalise: scale embeddings to length 1; MATS takes them as they are.
        """
        return _normalised(self.audio(x, longer), normalise)

    def encode_text(
        self, ids: jax.Array, mask: jax.Array, *, normalise: bool = False, dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """Embeddings of texts [B, dim] in the compute dtype `dtype`.

        Args:
            ids, mask: int [B, L] of `text_batch`. normalise: scale embeddings to length 1.

        Raises:
            ConfigError: the texts are longer than the tower's table of positions.
        """
        return _normalised(self.text(ids, mask, dtype), normalise)

    def logits(self, audio: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeddings [A, dim] and [T, dim] -> scaled cosines float32 [A, T], of each clip to every text, and [T, A]."""
        audio, text = (_normalised(x.astype(jnp.float32), True) for x in (audio, text))
        cosine, scale = audio @ text.T, jnp.exp(self.logit_scale[...])
        return scale[0] * cosine, scale[-1] * cosine.T


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


def _normalised(x: jax.Array, wanted: bool) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True) if wanted else x
