"""What a step minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Batch
from alm_jax.models.aligners.mae_decoder import MaeDecoder
from alm_jax.models.apt import alignment_losses
from alm_jax.models.encoders.audio_mae import AudioMae
from alm_jax.models.features import AlignerText

LossGroup = int | Literal["batch"]
_SURE = 60.0  # score of a word to whose embedding an audio token points; log(vocabulary) is about 11


Loss = tuple[jax.Array, dict[str, jax.Array]]


class Objective(Protocol):
    """The sum of weight x loss over the targets of some rows; linear in the weights, so that rows may come in parts
    (but for those that are `Compared`)."""

    def __call__(self, model: Any, batch: Batch, weight: jax.Array, key: jax.Array | None, dtype: Any) -> Loss:
        """float32 scalar, and by name the losses that it is the sum of, if it is of several.

        `weight` is float32 [B, L], `key` turns dropout on, `dtype` is that of activations.
        """


def next_token(model: Any, batch: Batch, weight: jax.Array, key: jax.Array | None, dtype: Any) -> Loss:
    """Weighted negative log-likelihood of the next token, in float32."""
    return model.cross_entropy(model.hidden(batch, key=key, dtype=dtype), batch.targets, weight), {}


def heard_words(model: Any, batch: Batch, weight: jax.Array, key: jax.Array | None, dtype: Any) -> Loss:
    """Weighted negative log-likelihood of the targets as words that the aligner's tokens say, in any order; float32.

    Each audio token is read as a distribution over the decoder's vocabulary: softmax of the products of its direction
    with the text embeddings, both seen from the embeddings' mean, which is most of their length. A target's likelihood
    is its mean probability over the row's tokens. A second term draws the tokens as far from that mean as embeddings
    are, so that the decoder gets what it is used to reading: longer ones drown what its first blocks add to them. It is
    cheap, since no language model is run: a first stage for aligners that begin at random. Not from a paper.
    """
    embed = model.decoder.embed
    table = jax.lax.stop_gradient(embed.embedding[...].astype(jnp.float32))
    centre = table.mean(0)
    spread = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(table - centre), axis=-1)))
    tokens = model.heard(batch, dtype, key).astype(jnp.float32) - centre
    length = jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), 1e-6)  # [B, audio tokens, 1]
    words = jax.nn.log_softmax(embed.attend((tokens / length).astype(dtype)) * (_SURE / spread))
    targets = jnp.broadcast_to(batch.targets[:, None, :], (*words.shape[:2], batch.targets.shape[1]))
    said = jnp.take_along_axis(words, targets, axis=-1)  # [B, audio tokens, L]
    likelihood = jax.nn.logsumexp(said, axis=1) - jnp.log(said.shape[1])
    spoken = -jnp.sum(jnp.where(weight > 0, likelihood * weight, 0.0))
    stretched = jnp.sum(jnp.mean(jnp.square(jnp.log(length / spread)), axis=(1, 2)) * weight.sum(-1))
    return spoken + stretched, {"words_loss": spoken, "length_loss": stretched}


def masked_reconstruction(model: Any, batch: Batch, weight: jax.Array, key: jax.Array | None, dtype: Any) -> Loss:
    """Squared error of the hidden patches of each clip (Audio-MAE; survey equation 6), times the weight of its row.

    Without a key, in validation, the same patches are always hidden.

    Raises:
        ConfigError: the model has another encoder or aligner, or rows hear several clips.
    """
    if not isinstance(model.aligner, MaeDecoder) or not isinstance(model.encoder, AudioMae):
        raise ConfigError("objective masked_reconstruction needs an audio_mae encoder and a mae_decoder aligner")
    if batch.audio.shape[1] != 1:
        raise ConfigError(f"objective masked_reconstruction hears one clip a row; rows hear {batch.audio.shape[1]}")
    key = jax.random.key(0) if key is None else key
    error = model.aligner.reconstruction(model.encoder, batch.audio[:, 0].astype(dtype), key)
    return jnp.sum(error * weight.sum(-1)), {}


@dataclass(frozen=True)
class Compared:
    """An objective in which the rows of a batch are compared with each other, on whatever devices they lie.

    It comes in two halves, so that large batches need little memory: what a row becomes by itself may be computed in
    micro-batches (`train.micro_batches.cached`), what is compared is small.

    Attributes:
        embed: (model, batch, key, dtype) -> arrays [B, ...], row by row.
        compare: (model, batch, these arrays, rows, key) -> losses by name, means over the `rows` (bool [B]) that take
            part; their sum is minimised.
    """

    embed: Callable[[Any, Batch, jax.Array | None, Any], Any]
    compare: Callable[[Any, Batch, Any, jax.Array, jax.Array | None], dict[str, jax.Array]]

    def __call__(self, model: Any, batch: Batch, weight: jax.Array, key: jax.Array | None, dtype: Any) -> Loss:
        """The mean over the rows that have weight, times the sum of the weights."""
        first, second = split_key(key)
        return self.loss(model, batch, self.embed(model, batch, first, dtype), weight, second)

    def loss(self, model: Any, batch: Batch, embedded: Any, weight: jax.Array, key: jax.Array | None) -> Loss:
        """The same, given what the rows became."""
        rows = (weight > 0).any(-1)
        if batch.aligner_mask is not None:
            rows &= batch.aligner_mask[:, 0].any(-1)
        rows |= ~rows.any()  # where there are none, all count, with a weight of 0
        total = weight.sum()
        parts = {name: part * total for name, part in self.compare(model, batch, embedded, rows, key).items()}
        return sum(parts.values()), parts if len(parts) > 1 else {}


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """The keys of the two halves of `Compared`."""
    return (None, None) if key is None else tuple(jax.random.split(key))


def _pairs(batch: Batch, has_heads: bool, name: str, heads: str) -> AlignerText:
    """The text of each row's one clip.

    Raises:
        ConfigError: the aligner has no heads for the objective or is given no text, or rows hear several clips.
    """
    if not has_heads or batch.aligner_tokens is None:
        missing = "layout.aligner_text_tokens and an aligner_tokenizer" if has_heads else heads
        raise ConfigError(f"objective {name} needs {missing}")
    if batch.audio.shape[1] != 1:
        raise ConfigError(f"objective {name} pairs a text with one clip; rows hear {batch.audio.shape[1]}")
    return AlignerText(batch.aligner_tokens[:, 0], batch.aligner_mask[:, 0])


def _aligner_hears(model: Any, batch: Batch, key: jax.Array | None, dtype: Any) -> jax.Array:
    heads = getattr(model.aligner, "heads", None)
    _pairs(batch, heads is not None, "audio_text_alignment", "aligner.pretraining")
    return model.aligner.normalise(model.encode(batch.audio[:, 0].astype(dtype)))


def _alignment(model: Any, batch: Batch, audio: jax.Array, rows: jax.Array, key: jax.Array | None):
    text = AlignerText(batch.aligner_tokens[:, 0], batch.aligner_mask[:, 0])
    parts = alignment_losses(model.aligner, audio, text, key, rows)
    return {f"{name}_loss": part for name, part in parts._asdict().items()}


audio_text_alignment = Compared(_aligner_hears, _alignment)
"""Contrasting, matching and text generation of the aligner's texts with their clips (`models.apt`); no decoder."""


def _towers(model: Any, batch: Batch, key: jax.Array | None, dtype: Any) -> tuple[jax.Array, jax.Array]:
    text = _pairs(batch, hasattr(model.aligner, "contrast"), "audio_text_contrast", "a clap_heads aligner")
    first, second = split_key(key)
    audio = model.aligner.encode_audio(model.encode(batch.audio[:, 0].astype(dtype)), first)
    return audio, model.aligner.encode_text(text, second, dtype)


def _contrast(model: Any, batch: Batch, embedded: Any, rows: jax.Array, key: jax.Array | None):
    return {"loss": model.aligner.contrast(*embedded, rows)}


audio_text_contrast = Compared(_towers, _contrast)
"""Contrast of the embeddings of clips and their texts, by the loss that `ClapHeadsConfig.contrast` names (CLAP)."""


OBJECTIVES: dict[str, Objective] = {
    "next_token": next_token,
    "heard_words": heard_words,
    "masked_reconstruction": masked_reconstruction,
    "audio_text_alignment": audio_text_alignment,
    "audio_text_contrast": audio_text_contrast,
}


BY_POSITION = frozenset({"next_token"})
"""Objectives that take each position by itself, so that rows may share a sequence (`DataSpec.pack`)."""


def normalised_weights(loss_weight: jax.Array, groups: jax.Array, count: int) -> jax.Array:
    """Weights that make the weighted sum of losses a mean over groups of the token mean in each group.

    The official trainers average the means of their micro-batches; a group is such a micro-batch. A group without any
    target is left out of the mean (the official code would divide by zero).

    Args:
        loss_weight: float32 [B, L].
        groups: int32 [B] which group a row belongs to; count: number of groups.

    Returns:
        float32 [B, L]; sums to 1, or to 0 where no row has a target.
    """
    tokens = jax.ops.segment_sum(loss_weight.sum(-1), groups, num_segments=count)
    filled = jnp.maximum(jnp.sum(tokens > 0), 1)
    share = jnp.where(tokens > 0, 1.0 / (jnp.where(tokens > 0, tokens, 1.0) * filled), 0.0)
    return loss_weight * share[groups][:, None]
