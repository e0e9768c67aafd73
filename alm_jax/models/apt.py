"""APT: Acoustic Prompt Tuning (Liang et al. 2023): Audio-MAE, an instruction-aware Q-Former, a frozen LLaMA.

Its parts, its layout and the losses of its alignment stage as the published code has them; where the paper differs it
is said beside the value.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.core.sequence import Layout
from alm_jax.models.aligners.qformer import QFormer, QFormerConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.features import AlignerText

# Vicuna's 32000 ids, `[PAD]` and `<AUDIO>`, whose row is never read: what stands before a clip is a vector of its own.
VOCABULARY = 32002

# `[bos]([AUDIO] audio text)*`, the published `</s>` (id 2) in the place of BOS. Of each text at most 128 tokens are
# read, and 256 of the answer (with a BOS of its own that is then dropped); so many the aligner reads with the clip
# before it. A repetition penalty sees what was generated alone.
LAYOUT = Layout(
    bos="first",
    indicators=1,
    max_text_tokens=2048,
    loss_on="answer",
    penalize_prompt=False,
    opens_with="eos",
    apart=True,
    max_prompt_tokens=127,
    max_answer_tokens=255,
    aligner_text_tokens=128,
)

# The alignment stage reads what is said of a clip; its own first 32 tokens.
ALIGNMENT_LAYOUT = replace(LAYOUT, aligner_reads="answer", aligner_text_tokens=32)

# The published code hears 32 kHz, scaled to a peak and without mean and deviation, although Audio-MAE was trained at
# 16 kHz and with both (`AUDIO_MAE_FRONTEND`).
FRONTEND = KaldiFbank(sample_rate=32000, peak=0.5, mean=0.0, std=1.0)
AUDIO_MAE_FRONTEND = KaldiFbank(mean=-4.2677393, std=2 * 4.5689974)

SMOOTHING = 0.1  # of labels, in contrasting and in text generation; not in the paper


def apt(
    decoder: LlamaConfig | None = LlamaConfig(vocab_size=VOCABULARY),
    encoder: AudioMaeConfig = AudioMaeConfig(classes=527),
    aligner: QFormerConfig = QFormerConfig(),
) -> AlmConfig:
    """APT over parts of any size; the defaults are the published 7B model. Without a decoder, its alignment stage.

    The aligner reads the output of the last block
    (the paper says the penultimate: `taps=(depth - 1,)`). The classifier of the encoder is kept, as it is in official
    checkpoints.
    """
    return AlmConfig(
        frontend=replace(FRONTEND, frames=encoder.frames, num_mels=encoder.mels),
        encoder=encoder,
        aligner=replace(aligner, dim=encoder.dim, out_dim=decoder and decoder.dim, steps=prod(encoder.grid)),
        decoder=decoder,
        indicators=1,
    )


class AlignmentLosses(NamedTuple):
    """The three losses of the alignment stage, whose sum is minimised (appendix A; official `lam_qformer.py`)."""

    contrast: jax.Array
    match: jax.Array
    text: jax.Array


def alignment_losses(
    aligner: QFormer, audio: jax.Array, text: AlignerText, key: jax.Array | None = None, rows: jax.Array | None = None
) -> AlignmentLosses:
    """Losses of B clips and their texts, row by row; negatives are the other rows.

    Args:
        aligner: with `pretraining` heads. audio: normalised features [B, T, dim] (`QFormer.normalise`).
        text: `[CLS] ... [SEP]` and padding. key: of the drawn negatives and of dropout; None for no dropout, and the
            same draw each time.
        rows: bool [B], False for places in the batch that hold no pair; None if all do.
    """
    keys = (None, jax.random.key(0), None, None) if key is None else jax.random.split(key, 4)
    similar = similarities(aligner, audio, text, keys[0])
    clips, texts = draw_negatives(similar, keys[1], rows)
    counted = text if rows is None else AlignerText(text.tokens, text.mask & rows[:, None])
    return AlignmentLosses(
        contrast_loss(similar, rows),
        match_loss(matches(aligner, *matching_rows(audio, text, clips, texts), keys[2]), rows),
        text_loss(aligner, audio, counted, keys[3]),
    )


def similarities(aligner: QFormer, audio: jax.Array, text: AlignerText, key: jax.Array | None = None) -> jax.Array:
    """float32 [clips, texts]: cosine of each text with a clip's most similar query, over the learnt temperature."""
    queries, words = aligner.heads.compared(*aligner.outputs(audio, text, "unimodal", key))
    cosines = jnp.einsum("bqe,te->btq", queries, words, preferred_element_type=jnp.float32)
    return cosines.max(-1) / aligner.heads.temperature[...]


def contrast_loss(similar: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """Clip i belongs to text i: cross-entropy along both axes of [clips, texts], averaged."""
    own = jnp.arange(similar.shape[0])
    one_way = lambda scores: _cross_entropy(scores, own, SMOOTHING, among=rows).mean(where=rows)
    return (one_way(similar) + one_way(similar.T)) / 2


def negative_weights(similar: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """How likely each column is drawn as the negative of a row [n, n]: by similarity; never the row's own."""
    weights = jax.nn.softmax(similar, axis=-1, where=rows) + 1e-4
    unfit = jnp.eye(similar.shape[0], dtype=bool) | (False if rows is None else ~rows)
    return jnp.where(unfit, 0.0, weights)


def draw_negatives(similar: jax.Array, key: jax.Array, rows: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Hard negatives of [clips, texts]: for each text another clip int [B], for each clip another text int [B]."""
    keys = jax.random.split(key)
    draw = lambda key, scores: jax.random.categorical(key, jnp.log(negative_weights(scores, rows)))
    return draw(keys[0], similar.T), draw(keys[1], similar)


def matching_rows(audio: jax.Array, text: AlignerText, clips: jax.Array, texts: jax.Array):
    """(audio [3B, ...], text [3B, L]): pairs, then each text with another clip, then each clip with another text."""
    other = AlignerText(text.tokens[texts], text.mask[texts])
    join = lambda *parts: jnp.concatenate(parts)
    return join(audio, audio[clips], audio), AlignerText(*map(join, text, text, other))


def matches(aligner: QFormer, audio: jax.Array, text: AlignerText, key: jax.Array | None = None) -> jax.Array:
    """Whether each text is about its clip: logits [B, (no, yes)], averaged over the queries."""
    queries, _ = aligner.outputs(audio, text, "bidirectional", key)
    return aligner.heads.match(queries).mean(1)


def match_loss(logits: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """Cross-entropy of logits [3B, 2] of `matching_rows`, a third of which match.

    Of `rows` bool [B] a single one has no negatives.
    """
    labels = (jnp.arange(logits.shape[0]) < logits.shape[0] // 3).astype(jnp.int32)
    if rows is not None:
        others = rows & (rows.sum() > 1)
        rows = jnp.concatenate([rows, others, others])
    return _cross_entropy(logits, labels).mean(where=rows)


def text_logits(aligner: QFormer, audio: jax.Array, text: AlignerText, key: jax.Array | None = None) -> jax.Array:
    """Next-word logits [B, L, vocab] of each text, begun with `[DEC]` in place of `[CLS]`, given the clip's queries."""
    begun = AlignerText(text.tokens.at[:, 0].set(aligner.config.begin_id), text.mask)
    _, words = aligner.outputs(audio, begun, "causal", key)
    return aligner.heads.words(words, aligner.embed)


def text_loss(aligner: QFormer, audio: jax.Array, text: AlignerText, key: jax.Array | None = None) -> jax.Array:
    """Token mean of the smoothed cross-entropy of each text's words after the first."""
    logits = text_logits(aligner, audio, text, key)[:, :-1]
    counted = text.mask[:, 1:].astype(jnp.float32)
    return (_cross_entropy(logits, text.tokens[:, 1:], SMOOTHING) * counted).sum() / jnp.maximum(counted.sum(), 1.0)


def _cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0, among: jax.Array | None = None
) -> jax.Array:
    """[..., n] and int [...] -> float32 [...]; a share `smoothing` of each label is spread over all n, or those
    `among` which the label is: bool [n]."""
    logits = logits.astype(jnp.float32)
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    spread = logits.mean(-1, where=among)
    return jax.nn.logsumexp(logits, axis=-1, where=among) - (1 - smoothing) * own - smoothing * spread
