"""Whisper's text decoder, and the whole model (Radford et al. 2022; official `whisper/model.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.kernels.attention import attention
from alm_jax.kernels.decode_attention import decode_attention
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.attention import Attention
from alm_jax.layers.embed import Embed
from alm_jax.layers.mlp import Mlp
from alm_jax.layers.norm import LayerNorm
from alm_jax.models.cache import KVCache
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig

KeysValues = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class WhisperDecoderConfig:
    """Sizes of the text decoder; defaults are `base`.

    Attributes:
        vocab_size, dim, heads, depth: of the transformer; the feed-forward is four times as wide.
        positions: rows of the learnt position table, the longest text.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    vocab_size: int = 51865
    dim: int = 512
    heads: int = 8
    depth: int = 6
    positions: int = 448
    remat: stack.Remat = "none"


@dataclass(frozen=True)
class WhisperSeq2SeqConfig:
    """Encoder and decoder, of one width."""

    encoder: WhisperConfig = WhisperConfig()
    decoder: WhisperDecoderConfig = WhisperDecoderConfig()

    def __post_init__(self):
        if self.encoder.dim != self.decoder.dim:
            raise ConfigError(f"encoder.dim {self.encoder.dim} differs from decoder.dim {self.decoder.dim}")


class WhisperDecoderBlock(nnx.Module):
    """Pre-norm block: attention among the text, attention over the audio, feed-forward."""

    def __init__(self, c: WhisperDecoderConfig, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.attn_norm = LayerNorm(c.dim)
        self.attn = Attention(c.dim, c.heads, keys[0], bias="qvo")
        self.cross_norm = LayerNorm(c.dim)
        self.cross = Attention(c.dim, c.heads, keys[1], bias="qvo")
        self.mlp_norm = LayerNorm(c.dim)
        self.mlp = Mlp(c.dim, 4 * c.dim, keys[2])

    def audio_kv(self, audio: jax.Array) -> KeysValues:
        """Features [B, S, dim] -> keys and values [B, S, heads, width]."""
        return self._heads(self.cross.k(audio)), self._heads(self.cross.v(audio))

    def __call__(self, x: jax.Array, audio: KeysValues, attend: Attend) -> tuple[jax.Array, KeysValues]:
        """[B, L, dim] -> ([B, L, dim], keys and values of the text [B, L, heads, width])."""
        y = self.attn_norm(x)
        q, k, v = (self._heads(project(y)) for project in (self.attn.q, self.attn.k, self.attn.v))
        x = x + self.attn.o(_joined(attend(q, k, v)))
        q = self._heads(self.cross.q(self.cross_norm(x)))
        x = x + self.cross.o(_joined(attention(q, *audio)))
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, ax.BATCH, ax.LENGTH, None), (k, v)

    def _heads(self, x: jax.Array) -> jax.Array:
        return rearrange(x, "b l (h d) -> b l h d", h=self.attn.heads)


def _joined(heads: jax.Array) -> jax.Array:
    return rearrange(heads, "b l h d -> b l (h d)")


class WhisperDecoder(nnx.Module):
    """Text in, hidden states out, over the features of audio; the head is the embedding table."""

    def __init__(self, config: WhisperDecoderConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 3)
        self.embedding = Embed(c.vocab_size, c.dim, keys[0])
        self.pos_embed = init.normal(keys[1], (c.positions, c.dim), (ax.POSITION, ax.EMBED))
        self.blocks = stack.build(lambda k: WhisperDecoderBlock(c, k), keys[2], c.depth)
        self.norm = LayerNorm(c.dim)
        self.config = config

    def embed(self, tokens: jax.Array, positions: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Tokens int [B, L] at positions int [L] or [B, L] -> [B, L, dim]."""
        return self.embedding(tokens, dtype) + self.pos_embed[...].astype(dtype)[positions]

    def __call__(self, tokens: jax.Array, audio: jax.Array) -> jax.Array:
        """Hidden states of whole texts.

        Args:
            tokens: int [B, L] from position 0; what is padded on the right is seen by no token before it.
            audio: the encoder's features [B, S, dim]; their dtype is the compute dtype.

        Returns:
            [B, L, dim] after the final norm.
        """

        def body(block, x, _):
            return block(x, block.audio_kv(audio), _causal)[0], None

        x = self.embed(tokens, jnp.arange(tokens.shape[1]), audio.dtype)
        x, _ = stack.run(body, self.blocks, x, remat=self.config.remat)
        return self.norm(x)

    def audio_kv(self, audio: jax.Array) -> KeysValues:
        """Features [B, S, dim] -> keys and values of all blocks [layers, B, S, heads, width], fixed while decoding."""
        return stack.run(lambda block, carry, _: (carry, block.audio_kv(audio)), self.blocks, None)[1]

    def prefill(self, tokens: jax.Array, audio: KeysValues, slots: int) -> tuple[jax.Array, KVCache]:
        """As `__call__`, from `audio_kv`, and a cache of `slots` slots whose first L are filled."""
        x = self.embed(tokens, jnp.arange(tokens.shape[1]), audio[0].dtype)
        x, (k, v) = stack.run(lambda block, x, kv: block(x, kv, _causal), self.blocks, x, audio)
        return self.norm(x), KVCache.filled(k, v, jnp.ones(tokens.shape, jnp.int32), slots)

    def decode(
        self, tokens: jax.Array, audio: KeysValues, cache: KVCache, index: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states of new tokens int [B, L] at positions index.., and the cache with them written there."""
        new_ids = jnp.ones(tokens.shape, jnp.int32)
        ids = {"q_segment_ids": new_ids, "kv_segment_ids": cache.segment_ids}

        def body(block, x, xs):
            audio, layer = xs
            return block(x, audio, lambda q, k, v: decode_attention(q, k, v, cache.k, cache.v, layer=layer, **ids))

        x = self.embed(tokens, index + jnp.arange(tokens.shape[1]), audio[0].dtype)
        x, (k, v) = stack.run(body, self.blocks, x, (audio, jnp.arange(self.config.depth)))
        return self.norm(x), cache.write(k, v, new_ids, index)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., dim] -> float32 logits [..., vocab]."""
        return self.embedding.attend(hidden)


def _causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attention(q, k, v, causal=True)


class WhisperSeq2Seq(nnx.Module):
    """The whole model: log-mel frames and the text so far to logits of the next tokens."""

    def __init__(self, config: WhisperSeq2SeqConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.encoder = Whisper(config.encoder, keys[0])
        self.decoder = WhisperDecoder(config.decoder, keys[1])
        self.config = config

    def __call__(self, frames: jax.Array, tokens: jax.Array) -> jax.Array:
        """Frames [B, n, mels] and tokens int [B, L] -> float32 logits [B, L, vocab]."""
        return self.decoder.logits(self.decoder(tokens, self.encoder(frames).values[0]))
