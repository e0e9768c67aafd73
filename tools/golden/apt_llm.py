"""APT with its language model: rows of one clip and of several, texts as they are tokenized, logits, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.core.sequence import Audio, Batch, Row, Text, collate
from alm_jax.data.layout import lay_out, lay_out_prompt
from alm_jax.data.tokenizer import load_tokenizer
from alm_jax.infer.generate import generate
from alm_jax.infer.sampling import Sampling
from alm_jax.models.alm import AudioLanguageModel
from alm_jax.models.apt import LAYOUT
from alm_jax.models.decoders.decoder import Decoder
from alm_jax.models.features import AlignerText
from golden.apt_fixture import Fixture, read
from golden.ltu_model import IGNORED_LABEL, logits, mean_loss
from golden.report import TOLERANCE, Computed, Report


def check(prefix: Path, report: Report) -> None:
    """Compare everything recorded."""
    results = _Results(prefix, read(prefix))
    report.account(results.io, inputs=("audio", "multi_audio_index"), computed=_COMPUTED, results=results)


def check_long_audio(prefix: Path, report: Report) -> None:
    """A fixture of the aligner alone, on clips of several segments."""
    results = _LongAudio(read(prefix))
    report.account(results.io, inputs=("long_audio", "qformer_*"), computed=_COMPUTED_LONG, results=results)


class _Results:
    """Our side of every recorded array; `kind` is `single` or `multi`, how many clips a row has."""

    def __init__(self, prefix: Path, fixture: Fixture):
        self.io, self.sizes, self.model = fixture.io, fixture.sizes, fixture.model
        self.pad = self.sizes["special"]["pad"]
        self.layout = replace(
            LAYOUT,
            max_prompt_tokens=self.sizes["max_txt_len"] - 1,
            max_answer_tokens=self.sizes["max_output_txt_len"] - 1,
            aligner_text_tokens=self.sizes["max_txt_len"],
        )
        self.words = load_tokenizer(Path(f"{prefix}_tokenizer.model"))
        self.aligner_words = load_tokenizer(Path(f"{prefix}_vocab.txt"))
        self.batch, self.queries = cache(self._batch), cache(self._queries)

    def texts(self, kind: str) -> list[list[str]]:
        """The prompts of every row: as many as it has clips."""
        texts = self.sizes["texts"][f"{kind}_in"]
        return [[text] for text in texts] if kind == "single" else [list(row) for row in zip(*texts)]

    def clips(self, kind: str) -> np.ndarray:
        """Frames [B, clips, T, F]."""
        clips = self.io["audio"][:, 0].astype(np.float32)
        return clips[:, None] if kind == "single" else clips[self.io["multi_audio_index"]]

    def rows(self, kind: str) -> list[Row]:
        """Rows to learn from."""
        answers = self.sizes["texts"][f"{kind}_out"]
        return [
            lay_out([*_interleaved(texts), Text(answer, loss=True)], self.layout, self.words, **self.options())
            for texts, answer in zip(self.texts(kind), answers)
        ]

    def options(self):
        return {"audio_tokens": self.model.config.audio_tokens, "aligner_tokenizer": self.aligner_words}

    def _batch(self, kind: str) -> Batch:
        """The official batch: padded on the right, where pads see all before them that is not padding."""
        batch = collate(self.rows(kind), self.io[f"{kind}_labels"].shape[1], slots=self.clips(kind).shape[1])
        seen = batch.kv_segment_ids
        return replace(
            batch,
            tokens=np.where(seen == 1, batch.tokens, self.pad),
            positions=np.broadcast_to(np.arange(seen.shape[1], dtype=np.int32), seen.shape),
            q_segment_ids=np.ones_like(seen),
            audio=self.clips(kind),
        )

    def prompt_ids(self, kind: str, clip: str) -> list[list[int]]:
        """Every text opens as a row does, which counts."""
        texts = [row[int(clip or 0)] for row in self.texts(kind)]
        return [self.prompt([Text(text)]).tokens.tolist() for text in texts]

    def prompt(self, parts) -> Row:
        return lay_out_prompt(parts, self.layout, self.words, **self.options())

    def answer_ids(self, kind: str) -> list[list[int]]:
        texts = self.sizes["texts"][f"{kind}_out"]
        return [lay_out([Text(t, loss=True)], self.layout, self.words, **self.options()).tokens.tolist() for t in texts]

    def aligner_ids(self, kind: str, clip: str) -> list[list[int]]:
        return [row.aligner_text[int(clip or 0)] for row in self.rows(kind)]

    def ids(self, kind: str, what: str, clip: str):
        made = self.answer_ids(kind) if what == "out" else self.prompt_ids(kind, clip)
        return _padded(made, self.pad)

    def mask(self, kind: str, what: str, clip: str):
        return _padded([[1] * len(ids) for ids in self.lists(kind, what, clip)], 0)

    def lists(self, kind: str, what: str, clip: str) -> list[list[int]]:
        if what == "qformer":
            return self.aligner_ids(kind, clip)
        return self.answer_ids(kind) if what == "out" else self.prompt_ids(kind, clip)

    def _queries(self, kind: str, clip: str):
        """What the queries drew out of one clip of each row."""
        frames = self.clips(kind)[:, int(clip or 0)]
        return query_outputs(self.model, frames, self.aligner_ids(kind, clip))

    def projected(self, kind: str, clip: str):
        return self.model.aligner.proj(self.queries(kind, clip))

    def embeddings(self, kind: str):
        return _embed(self.model, self.batch(kind))

    def labels(self, kind: str):
        batch = self.batch(kind)
        learnt = np.where(batch.loss_weight > 0, batch.targets, IGNORED_LABEL)[:, :-1]
        return np.pad(learnt, ((0, 0), (1, 0)), constant_values=IGNORED_LABEL)

    def logits(self, kind: str):
        return logits(self.model, self.batch(kind))

    def full(self, name: str) -> np.ndarray:
        """Which rows of a recorded prompt hold no padding."""
        return self.io[f"{name}_mask"].all(1)

    def prompt_embeddings(self, name: str):
        """Ours in the rows without padding; the others put it among their prompt."""
        kind, full = "multi" if name == "fewshot" else "single", self.full(name)
        layout = replace(self.layout, bos="after_audio") if name == "generate" else self.layout
        ours = np.array(self.io[f"{name}_embeds"])
        rows = [lay_out_prompt(_interleaved(t), layout, self.words, **self.options()) for t in self.texts(kind)]
        if full.any():
            clips = self.clips(kind)[full]
            batch = collate([row for row, whole in zip(rows, full) if whole], ours.shape[1], slots=clips.shape[1])
            ours[full] = _embed(self.model, replace(batch, audio=clips))
        return ours

    def prompt_mask(self, name: str):
        """Texts are padded on their left, and where the first one opens there is padding too; clips have none."""
        kind = "multi" if name == "fewshot" else "single"
        heard = [1] * (self.model.config.audio_tokens + self.layout.indicators)
        columns = []
        for clip in range(self.clips(kind).shape[1]):
            lengths = [len(ids) for ids in self.prompt_ids(kind, str(clip))]
            text = np.array([[0] * (max(lengths) - n) + [1] * n for n in lengths])
            audio = np.tile(heard, (len(text), 1))
            first, rest = ([text[:, :1]] if clip == 0 else []), text[:, 1:]
            columns += [audio, *first, rest] if name == "generate" else [*first, audio, rest]
        return np.concatenate(columns, axis=1)

    def answered(self, name: str, how: str):
        """Greedy, or by so many beams: from the recorded embeddings, padding inside them and all."""
        said = self.sizes["generations"]
        kw = said[f"{name}_{how}"].get("kw") or said[f"generate_new_{how}"]["kw"]
        sampling = Sampling(repetition_penalty=kw["repetition_penalty"])
        if kw["num_beams"] > 1:
            sampling = replace(sampling, beams=kw["num_beams"], length_penalty=float(kw["length_penalty"]))
        recorded = self.io[f"{name}_{how}_ids"]
        eos = self.sizes["special"]["eos"]
        answers = answer(
            self.model.decoder, self.io[f"{name}_embeds"], self.io[f"{name}_mask"], recorded, sampling, eos
        )
        return ended(answers, recorded, (eos, self.pad, 0))


class _FromEmbeddings(nnx.Module):
    """A decoder that goes on from embeddings [B, L, D], which stand where a batch has audio."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def prefill(self, batch: Batch, slots: int, dtype):
        return self.decoder.prefill(batch.audio.astype(dtype), batch.positions, batch.kv_segment_ids, slots)

    def decode(self, tokens, positions, cache, index, dtype):
        return self.decoder.decode(self.decoder.embed(tokens, dtype), positions, cache, index)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.decoder.logits(hidden)


def answer(decoder: Decoder, embeddings, mask, recorded: np.ndarray, sampling: Sampling, eos: int) -> list[list[int]]:
    """New ids after recorded prompts, whose positions count what is not padding."""
    rows, length = mask.shape
    batch = collate([Row(*np.zeros((6, length), int))] * rows, length, slots=0)
    seen = mask.astype(np.int32)
    positions = np.maximum(seen.cumsum(1) - 1, 0).astype(np.int32)
    nothing = np.zeros((rows, length), bool)
    batch = replace(
        batch, positions=positions, q_segment_ids=seen, kv_segment_ids=seen, penalty_mask=nothing, audio=embeddings
    )
    options = {"max_new_tokens": recorded.shape[1], "sampling": sampling, "eos_ids": (eos,)}
    return generate(_FromEmbeddings(decoder), batch, **options)


def ended(answers: list[list[int]], recorded: np.ndarray, fillers: tuple[int, ...]) -> np.ndarray:
    """Answers as they are recorded: EOS, then fillers, which differ between versions of the official libraries."""
    ours = np.full(recorded.shape, -1)
    for row, ids in enumerate(answers):
        ours[row, : len(ids)] = ids
        rest = recorded[row, len(ids) :]
        ours[row, len(ids) :] = np.where(np.isin(rest, fillers), rest, -1)
    return ours


def query_outputs(model, frames: np.ndarray, texts: Sequence[Sequence[int]]) -> jax.Array:
    """Frames [N, T, F] and a text for each -> the queries [N, Q, hidden] before they are projected."""
    ids = _padded(texts, 0)
    text = AlignerText(jnp.asarray(ids), jnp.asarray(_padded([[1] * len(t) for t in texts], 0)) == 1)
    return _queries(model, frames, text)


@jax.jit
def _queries(model: AudioLanguageModel, frames: jax.Array, text: AlignerText) -> jax.Array:
    return model.aligner.outputs(model.aligner.normalise(model.encode(frames)), text)[0]


_embed = jax.jit(AudioLanguageModel.embed)


class _LongAudio:
    """Each segment of a clip meets the same text; what the queries drew stands side by side."""

    def __init__(self, fixture: Fixture):
        self.io, self.model = fixture.io, fixture.model

    def queries(self):
        clips = self.model.encoder.segments(self.io["long_audio"][:, 0].astype(np.float32))
        rows, segments = clips.shape[:2]
        texts = [ids[seen == 1] for ids, seen in zip(self.io["qformer_ids"], self.io["qformer_mask"])]
        # Officially the first segments of all clips come first.
        windows = clips.swapaxes(0, 1).reshape(-1, *clips.shape[2:])
        queries = query_outputs(self.model, windows, texts)
        by_clip = queries.reshape(segments, rows, *queries.shape[1:]).swapaxes(0, 1)
        return by_clip.reshape(rows, -1, queries.shape[-1])


def _interleaved(texts: Sequence[str]):
    return [part for clip, text in enumerate(texts) for part in (Audio(clip), Text(text))]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([[*row, *[fill] * (longest - len(row))] for row in rows])


_ROWS = "(single|multi)"
_PROMPTS = "(generate|generate_new|fewshot)"
_COMPUTED: list[Computed] = [
    (_ROWS + r"_qformer_ids(\d*)", lambda r, kind, clip: _padded(r.aligner_ids(kind, clip), 0), None),
    (_ROWS + r"_(in|out)_ids(\d*)", _Results.ids, None),
    (_ROWS + r"_(qformer|in|out)_mask(\d*)", _Results.mask, None),
    (_ROWS + r"_query_out(\d*)", lambda r, kind, clip: r.queries(kind, clip), TOLERANCE),
    (_ROWS + r"_llm_proj(\d*)", _Results.projected, TOLERANCE),
    (_ROWS + r"_inputs_embeds", _Results.embeddings, TOLERANCE),
    (_ROWS + r"_attention_mask", lambda r, kind: r.batch(kind).kv_segment_ids, None),
    (_ROWS + r"_labels", _Results.labels, None),
    (_ROWS + r"_logits", _Results.logits, TOLERANCE),
    (_ROWS + r"_loss", lambda r, kind: mean_loss(r.model, r.batch(kind)), TOLERANCE),
    (_PROMPTS + r"_embeds", _Results.prompt_embeddings, TOLERANCE),
    (_PROMPTS + r"_mask", _Results.prompt_mask, None),
    (_PROMPTS + r"_(greedy|beam\d+)_ids", lambda r, name, how: r.answered(name, how), None),
]
_COMPUTED_LONG: list[Computed] = [(r"aligner_multiseg", lambda r: r.queries(), TOLERANCE)]
