"""The audio-language model: an encoder and an aligner turn clips into tokens, a decoder reads them among text."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.audio.frontend import KaldiFbank, LibrosaLogMel, WhisperLogMel
from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.core.sequence import Batch
from alm_jax.layers import initializers as init
from alm_jax.models.aligners.clap_heads import ClapHeadsConfig
from alm_jax.models.aligners.mae_decoder import MaeDecoderConfig
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.aligners.tltr import TltrConfig
from alm_jax.models.cache import KVCache
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.ast import AstConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.beats import BeatsConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.encoders.cnn14 import Cnn14Config
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.features import AlignerText, Features
from alm_jax.models.registry import module_of
from alm_jax.models.santa import SantaConfig
from alm_jax.models.vision import Vision, VisionConfig

FrontendConfig = KaldiFbank | WhisperLogMel | LibrosaLogMel
EncoderConfig = (
    CavMaeConfig
    | WhisperConfig
    | AudioMaeConfig
    | ClapEncoderConfig
    | HtsatConfig
    | AstConfig
    | BeatsConfig
    | Cnn14Config
)
AlignerConfig = PooledLinearConfig | TltrConfig | QFormerConfig | MapperConfig | ClapHeadsConfig | MaeDecoderConfig
DecoderConfig = LlamaConfig | Gpt2Config


@dataclass(frozen=True)
class AlmConfig:
    """Three parts and what passes between them.

    Attributes:
        frontend: waveform to frames, done where audio is loaded. encoder: frames to features; None if batches already
            hold features (frozen encoders, computed once). aligner: features to tokens. All three are None in a model
            that does not listen. decoder: the language model; None in a stage that trains the aligner without one.
        taps: encoder layers that the aligner reads (`Whisper.__call__`); None for the encoder's own output.
        pool: encoder steps averaged into one before the aligner.
        indicators: learnt vectors that a layout may place before a clip (APT's `[AUDIO]`).
        vision: what turns images into tokens of the same decoder, or None.
        santa: how clips are drawn towards a memory of texts when the model is asked with one; None for never.
    """

    frontend: FrontendConfig | None
    encoder: EncoderConfig | None
    aligner: AlignerConfig | None
    decoder: DecoderConfig | None
    taps: tuple[int, ...] | None = None
    pool: int = 1
    indicators: int = 0
    vision: VisionConfig | None = None
    santa: SantaConfig | None = None

    def __post_init__(self):
        if self.aligner is None:
            if self.encoder is not None or self.vision is None:
                raise ConfigError("a model without an aligner has no encoder, and sees: give vision, or an aligner")
        elif self.decoder is not None and self.aligner.out_dim != self.decoder.dim:
            raise ConfigError(f"aligner.out_dim {self.aligner.out_dim} differs from decoder.dim {self.decoder.dim}")
        elif self.encoder is not None and self.encoder.dim != self.aligner.dim:
            raise ConfigError(f"aligner.dim {self.aligner.dim} differs from encoder.dim {self.encoder.dim}")
        if self.vision is not None and (self.decoder is None or self.vision.aligner.out_dim != self.decoder.dim):
            raise ConfigError(
                f"vision.aligner.out_dim {self.vision.aligner.out_dim} differs from "
                f"decoder.dim {self.decoder and self.decoder.dim}"
            )

        if self.santa is not None and (self.aligner is None or self.aligner.feature_shape[:2] != (1, 1)):
            raise ConfigError("santa moves a clip's one embedding; this model's aligner reads more of it: leave it out")

    @property
    def audio_tokens(self) -> int:
        """Aligner tokens of one slot."""
        return 0 if self.aligner is None else self.aligner.tokens

    @property
    def image_tokens(self) -> int:
        """Aligner tokens of one image."""
        return 0 if self.vision is None else self.vision.aligner.tokens

    @property
    def audio_shape(self) -> tuple[int, ...]:
        """Shape of one slot of `Batch.audio`: frames of the front end, or features [K, T, D] without an encoder."""
        return self.aligner.feature_shape if self.encoder is None else self.frontend.feature_shape


class AudioLanguageModel(nnx.Module):
    """Rows of interleaved audio and text to hidden states and logits."""

    def __init__(self, config: AlmConfig, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.encoder = None if config.encoder is None else module_of(config.encoder)(config.encoder, keys[0])
        self.aligner = None if config.aligner is None else module_of(config.aligner)(config.aligner, keys[1])
        self.decoder = None if config.decoder is None else module_of(config.decoder)(config.decoder, keys[2])
        if config.indicators and config.decoder is not None:
            shape = (config.indicators, config.decoder.dim)
            self.indicators = init.normal(keys[3], shape, (ax.POSITION, ax.EMBED))
        self.vision = None if config.vision is None else Vision(config.vision, jax.random.fold_in(key, len(keys)))
        self.config = config

    def encode(self, audio: jax.Array) -> Features:
        """Slots [N, ...] -> Features [K, N, T, D]: through the encoder, or as they are if they are features."""
        if self.encoder is None:
            return Features(jnp.moveaxis(audio, 1, 0))
        return self.encoder(audio, self.config.taps, self.config.pool)

    def audio_tokens(
        self, audio: jax.Array, text: AlignerText | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """Slots [B, A, ...], and the text [B, A, La] that an aligner may read -> decoder embeddings [B, A * T, D]."""
        rows, slots = audio.shape[:2]
        flat = lambda x: x.reshape(rows * slots, *x.shape[2:])
        tokens, _ = self.aligner(self.encode(flat(audio)), None if text is None else AlignerText(*map(flat, text)), key)
        return tokens.reshape(rows, slots * tokens.shape[1], tokens.shape[2])

    def heard(self, batch: Batch, dtype: jnp.dtype = jnp.float32, key: jax.Array | None = None) -> jax.Array:
        """The aligner tokens [B, A * T, D] of a batch with audio."""
        text = None if batch.aligner_tokens is None else AlignerText(batch.aligner_tokens, batch.aligner_mask)
        return self.audio_tokens(in_dtype(batch.audio, dtype), text, key).astype(dtype)

    def seen(self, batch: Batch, dtype: jnp.dtype = jnp.float32, key: jax.Array | None = None) -> jax.Array:
        """The aligner tokens [B, I * T, D] of a batch with images."""
        text = None if batch.image_tokens is None else AlignerText(batch.image_tokens, batch.image_mask)
        return self.vision(batch.image.astype(dtype), text, key)

    def embed(self, batch: Batch, dtype: jnp.dtype = jnp.float32, key: jax.Array | None = None) -> jax.Array:
        """Decoder input [B, L, D] in `dtype`: text, aligner tokens and indicators, each where its index says."""
        x = self.decoder.embed(batch.tokens, dtype)
        if batch.audio is not None:
            audio = self.heard(batch, dtype, key)
            x = _place(x, batch.audio_index, jnp.take_along_axis(audio, _at(batch.audio_index), axis=1))
        if batch.image is not None:
            images = self.seen(batch, dtype, None if key is None else jax.random.fold_in(key, 1))
            x = _place(x, batch.image_index, jnp.take_along_axis(images, _at(batch.image_index), axis=1))
        if self.config.indicators:
            x = _place(x, batch.indicator_index, self.indicators[...].astype(dtype)[_at(batch.indicator_index)[..., 0]])
        return constrain(x, ax.BATCH, ax.LENGTH, None)

    def hidden(self, batch: Batch, key: jax.Array | None = None, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Hidden states [B, L, D]; `key` turns on what is random in training (dropout, an aligner's noise)."""
        embed_key, key = (None, None) if key is None else jax.random.split(key)
        x = self.embed(batch, dtype, embed_key)
        return self.decoder(x, batch.positions, batch.q_segment_ids, batch.kv_segment_ids, key)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., vocab]."""
        return self.decoder.logits(hidden)

    def cross_entropy(self, hidden: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
        """Weighted sum of the loss of the next tokens (`models.decoders.decoder.Decoder.cross_entropy`)."""
        return self.decoder.cross_entropy(hidden, targets, weight)

    def prefill(self, batch: Batch, slots: int, dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, KVCache]:
        """Hidden states of prompts and a cache of `slots` slots that begins with them."""
        return self.decoder.prefill(self.embed(batch, dtype), batch.positions, batch.kv_segment_ids, slots)

    def decode(self, tokens, positions, cache: KVCache, index, dtype: jnp.dtype = jnp.float32):
        """Hidden states of new text tokens int [B, L], and the cache with them written at slot `index`."""
        return self.decoder.decode(self.decoder.embed(tokens, dtype), positions, cache, index)


def build(config: AlmConfig, key: jax.Array) -> AudioLanguageModel:
    """A model with random weights; under `core.tree.abstract` one without memory."""
    return AudioLanguageModel(config, key)


def in_dtype(windows: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Windows of clips in the compute dtype; ids of texts that stand for clips are exact as they are."""
    return windows if jnp.issubdtype(windows.dtype, jnp.integer) else windows.astype(dtype)


def _at(index: jax.Array) -> jax.Array:
    return jnp.maximum(index, 0)[..., None]


def _place(x: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where((index >= 0)[..., None], values, x)
