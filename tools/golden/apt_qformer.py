"""APT's alignment stage: one forward pass of the official `LamQformer`, its three losses, and the streams between."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.models import apt
from alm_jax.models.aligners.qformer import Mask, QFormer
from alm_jax.models.alm import AudioLanguageModel
from alm_jax.models.features import AlignerText
from golden.apt_fixture import Fixture, read
from golden.report import TOLERANCE, Computed, Report

_INPUTS = (
    "audio",
    "text_input_ids",
    "text_attention_mask",
    "neg_audio_idx",
    "neg_text_idx",
    "cond_text_ids",
    "cond_text_mask",
)
_IGNORED_LABEL = -100


def check(prefix: Path, report: Report) -> None:
    """Compare everything recorded."""
    fixture = read(prefix)
    report.account(fixture.io, inputs=_INPUTS, computed=_COMPUTED, results=_Results(fixture))


class _Results:
    """Our side of every recorded array."""

    def __init__(self, fixture: Fixture):
        io = self.io = fixture.io
        self.model, self.aligner = fixture.model, fixture.model.aligner
        self.text = AlignerText(jnp.asarray(io["text_input_ids"]), io["text_attention_mask"] == 1)
        self.asked = AlignerText(jnp.asarray(io["cond_text_ids"]), io["cond_text_mask"] == 1)
        self.clips, self.texts = io["neg_audio_idx"], io["neg_text_idx"]

    @cached_property
    def features(self):
        frames = self.io["audio"][:, 0].astype(np.float32)
        return jax.jit(AudioLanguageModel.encode)(self.model, frames)

    @cached_property
    def audio(self):
        return self.aligner.normalise(self.features)

    @cached_property
    def rows(self):
        return apt.matching_rows(self.audio, self.text, self.clips, self.texts)

    def patches(self, start: str, stop: str):
        return self.features.values[0][:, int(start) : int(stop)]

    def outputs(self, mask: Mask, audio=None, text=None):
        """(queries, text) after the last block."""
        audio, text = self.audio if audio is None else audio, self.text if text is None else text
        return _outputs(self.aligner, audio, text, mask=mask)

    def compared(self):
        return self.aligner.heads.compared(*self.outputs("unimodal"))

    @cached_property
    def similar(self):
        return jax.jit(apt.similarities)(self.aligner, self.audio, self.text)

    def matching(self):
        return jnp.concatenate(self.outputs("bidirectional", *self.rows), axis=1)

    def match_tokens(self):
        queries, _ = self.outputs("bidirectional", *self.rows)
        return self.aligner.heads.match(queries)

    @cached_property
    def match_logits(self):
        return _matches(self.aligner, *self.rows)

    def match_score(self):
        """Official `compute_itm`: the queries' mean logit of a match."""
        return _matches(self.aligner, self.audio, self.text)[:, 1]

    def begun(self):
        return self.text.tokens.at[:, 0].set(self.aligner.config.begin_id)

    def labels(self):
        return jnp.where(self.text.mask, self.begun(), _IGNORED_LABEL)

    def seen(self, text: AlignerText):
        return jnp.concatenate([jnp.ones((len(text.mask), self.aligner.config.queries), int), text.mask], axis=1)

    def grounded(self):
        return self.outputs("causal", text=AlignerText(self.begun(), self.text.mask))[1]

    @cached_property
    def losses(self):
        return {
            "_atc": apt.contrast_loss(self.similar),
            "_atm": apt.match_loss(self.match_logits),
            "_lm": jax.jit(apt.text_loss)(self.aligner, self.audio, self.text),
        }

    def loss(self, which: str | None):
        return self.losses[which] if which else sum(self.losses.values())

    def streams(self, text: AlignerText, mask: Mask):
        """Queries and text between the blocks, one block at a time; with each the block and its cross-attention."""
        aligner, x = self.aligner, self.aligner.embeddings(self.audio, text)
        every = aligner.config.cross_every
        for i in range(aligner.config.depth):
            block = jax.tree.map(lambda leaf: leaf[i], aligner.blocks)  # noqa: B023
            cross = None if i % every else jax.tree.map(lambda leaf: leaf[i // every], aligner.cross)  # noqa: B023
            yield x, block, cross
            x = block(*x, cross, self.audio, aligner.mask(text, mask))
        yield x, None, None

    def stream(self, index: str):
        return jnp.concatenate(list(self.streams(self.asked, "bidirectional"))[int(index)][0], axis=1)

    def self_attention(self, layer: str, head: str):
        """Weights [B, Q + L, Q + L] of one head over queries and text."""
        x, block, _ = list(self.streams(self.asked, "bidirectional"))[int(layer)]
        q, k, _ = block.attn.split(jnp.concatenate(x, axis=1))
        return _weights(q, k, int(head), self.seen(self.asked)[:, None, :])

    def cross_attention(self, layer: str, head: str, query: str):
        """Weights [B, T] of one query in one head over the clip."""
        x, block, cross = list(self.streams(self.asked, "bidirectional"))[int(layer)]
        whole = jnp.concatenate(x, axis=1)
        attended = block.attn_norm(whole + block.attn(whole, **self.aligner.mask(self.asked, "bidirectional")))
        q, k, _ = cross.attn.split(attended[:, : self.aligner.config.queries], self.audio)
        return _weights(q, k, int(head), True)[:, int(query)]

    def cached(self, what: str, layer: str):
        """Keys or values [B, heads, Q, width] of the queries, which see no text."""
        index = self.aligner.config.depth - 1 if layer == "_last" else int(layer)
        x, block, _ = list(self.streams(self.text, "unimodal"))[index]
        _, keys, values = block.attn.split(x[0])
        return (keys if what == "key" else values).swapaxes(1, 2)


_outputs = jax.jit(QFormer.outputs, static_argnames="mask")
_matches = jax.jit(apt.matches)


def _weights(q: jax.Array, k: jax.Array, head: int, seen: jax.Array | bool) -> jax.Array:
    scores = jnp.einsum("bld,bsd->bls", q[:, :, head], k[:, :, head]) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)


_COMPUTED: list[Computed] = [
    (r"patch_embedding_tok(\d+)_(\d+)", _Results.patches, TOLERANCE),
    (r"audio_embeds", lambda r: r.audio, TOLERANCE),
    (r"query_only_last_hidden", lambda r: r.outputs("unimodal")[0], TOLERANCE),
    (r"text_only_last_hidden", lambda r: r.outputs("unimodal")[1], TOLERANCE),
    (r"audio_feats", lambda r: r.compared()[0], TOLERANCE),
    (r"text_feat", lambda r: r.compared()[1], TOLERANCE),
    (r"sim_a2t", lambda r: r.similar, TOLERANCE),
    (r"sim_t2a", lambda r: r.similar.T, TOLERANCE),
    (r"neg_weights_t2a", lambda r: apt.negative_weights(r.similar.T), TOLERANCE),
    (r"neg_weights_a2t", lambda r: apt.negative_weights(r.similar), TOLERANCE),
    (r"atm_text_ids", lambda r: r.rows[1].tokens, None),
    (r"atm_attention_mask", lambda r: r.seen(r.rows[1]), None),
    (r"atm_last_hidden", _Results.matching, TOLERANCE),
    (r"atm_token_logits", _Results.match_tokens, TOLERANCE),
    (r"atm_logits", lambda r: r.match_logits, TOLERANCE),
    (r"itm_score_official_compute_itm", _Results.match_score, TOLERANCE),
    (r"lm_input_ids", _Results.begun, None),
    (r"lm_labels", _Results.labels, None),
    (r"lm_attention_mask", lambda r: r.seen(r.text), None),
    (r"lm_last_hidden", _Results.grounded, TOLERANCE),
    (r"lm_logits", lambda r: jax.jit(apt.text_logits)(r.aligner, r.audio, r.text), TOLERANCE),
    (r"loss(_\w+)?", _Results.loss, TOLERANCE),
    (r"cached_(key|value)_layer(_?\w+)", _Results.cached, TOLERANCE),
    (r"cond_query_out", lambda r: r.outputs("bidirectional", text=r.asked)[0], TOLERANCE),
    (r"cond_text_out", lambda r: r.outputs("bidirectional", text=r.asked)[1], TOLERANCE),
    (r"cond_hidden(\d+)", _Results.stream, TOLERANCE),
    (r"cond_self_attn_layer(\d+)_head(\d+)", _Results.self_attention, TOLERANCE),
    (r"cond_cross_attn_layer(\d+)_head(\d+)_q(\d+)", _Results.cross_attention, TOLERANCE),
]
