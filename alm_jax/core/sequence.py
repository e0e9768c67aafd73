"""The contract between data and models: parts, a system's layout of them, rows and batches.

An example is a list of parts: text, audio, images. A system's `Layout` is a value that says how parts become one row of
decoder positions; `Batch` is what a training or generation step takes. All shapes are fixed (lengths come in buckets),
all indices are data, so that assembling audio and text into one sequence is a single gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax
import numpy as np

Array = Any
_ALIGNER_BUCKET = 32  # to which lengths of texts for aligners are rounded up, so that few shapes are compiled


@dataclass(frozen=True)
class Text:
    """A piece of text; `loss` marks what the model is to learn to say."""

    text: str
    loss: bool = False


@dataclass(frozen=True)
class Audio:
    """The place where the example's clip number `clip` is heard."""

    clip: int = 0


@dataclass(frozen=True)
class Image:
    """The place where the example's picture (or frame of a video) number `image` is seen; `prompt` is what its aligner
    reads with it, None for the text that follows."""

    image: int = 0
    prompt: str | None = None


Part = Text | Audio | Image


@dataclass(frozen=True)
class Layout:
    """How a system writes parts into one row; a value in a config, so that data code needs no model.

    Attributes:
        bos: `after_audio` puts BOS between leading audio and text (LTU: `[audio][bos][text]`); `first` opens the row
            with it (MATS, APT); `after_images` puts it behind leading images (APT-BLIP-2).
        indicators: number of learnt vectors written before each clip (APT's `[AUDIO]` is one).
        eos: whether a row that ends in learnt text ends in EOS.
        max_text_tokens: text tokens a row may hold, BOS counted and audio not; longer text is cut (LTU's cutoff_len).
        loss_on: `all` text is learnt (LTU trains on the instruction too), or the `answer` alone (parts with `loss`).
        penalize_prompt: whether a repetition penalty sees the prompt's tokens (LTU), or new ones alone (APT, MATS).
        opens_with: which of the tokenizer's tokens stands where BOS does (APT: `</s>`).
        apart: whether each text part is tokenized by itself and cut to its own length (APT, MATS); else parts that
            touch are one string, and the row as a whole is cut.
        max_prompt_tokens, max_answer_tokens: longest parts where they are apart, EOS counted: a prompt loses its
            beginning, an answer its end.
        aligner_text_tokens: longest text of an aligner that reads one with its clip, special tokens counted; 0 for
            aligners that read none.
        aligner_reads: the `prompt` that follows the clip, cut at its beginning; or the `answer`, cut at its end, for an
            aligner that is to learn what goes with which clip.
        aligner_gap: written behind such a text, before its ending (MS-CLAP: a space).
    """

    bos: Literal["first", "after_audio", "after_images"] = "first"
    indicators: int = 0
    eos: bool = True
    max_text_tokens: int = 512
    loss_on: Literal["all", "answer"] = "answer"
    penalize_prompt: bool = True
    opens_with: Literal["bos", "eos"] = "bos"
    apart: bool = False
    max_prompt_tokens: int | None = None
    max_answer_tokens: int | None = None
    aligner_text_tokens: int = 0
    aligner_reads: Literal["prompt", "answer"] = "prompt"
    aligner_gap: str = ""


@dataclass
class Row:
    """One unpadded row: arrays over its `n` decoder positions, and the clips that it hears, in slot order.

    `targets[i]` is the token that position `i` predicts, counted with `loss_weight[i]` (0 or 1).
    `audio_index[i]` points into the row's flattened slots x tokens, -1 for text; `indicator_index` likewise.
    `aligner_text` holds the ids that the aligner reads with each slot, if it reads any. `image_index`, `images` and
    `image_text` are the same of images, of which each is one slot; None and empty in a row that sees none. `lengths`
    are those of the rows that it is packed from (`pack`); empty in a row by itself.
    """

    tokens: np.ndarray
    audio_index: np.ndarray
    indicator_index: np.ndarray
    targets: np.ndarray
    loss_weight: np.ndarray
    penalty_mask: np.ndarray
    clips: tuple[int, ...] = ()
    aligner_text: tuple[tuple[int, ...], ...] = ()
    image_index: np.ndarray | None = None
    images: tuple[int, ...] = ()
    image_text: tuple[tuple[int, ...], ...] = ()
    lengths: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


def pack(rows: Sequence[Row], *, audio_tokens: int, image_tokens: int = 0) -> Row:
    """Several rows as one, in which each sees itself alone: positions begin anew and segment ids differ (`collate`).

    The loss of each position is what it is in its own row.

    Args:
        rows: one or more, each by itself.
        audio_tokens: T, the aligner's tokens a slot. image_tokens: likewise, of an image.
    """
    if len(rows) == 1:
        return rows[0]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(row, name) for row in rows])

    def shifted(name: str, counts: list[int]) -> np.ndarray:
        """An index of each row, moved by what the rows before it count."""
        starts = np.cumsum([0, *counts[:-1]])
        indices = [getattr(row, name) for row in rows]
        indices = [np.full(len(row), -1, np.int32) if i is None else i for row, i in zip(rows, indices)]
        return np.concatenate([np.where(i < 0, i, i + start).astype(np.int32) for i, start in zip(indices, starts)])

    clips = np.cumsum([0, *(max(row.clips, default=-1) + 1 for row in rows)]).tolist()
    images = np.cumsum([0, *(max(row.images, default=-1) + 1 for row in rows)]).tolist()
    return Row(
        **{name: joined(name) for name in ("tokens", "indicator_index", "targets", "loss_weight", "penalty_mask")},
        audio_index=shifted("audio_index", [len(row.clips) * audio_tokens for row in rows]),
        clips=tuple(clip + start for row, start in zip(rows, clips) for clip in row.clips),
        aligner_text=tuple(text for row in rows for text in row.aligner_text),
        image_index=shifted("image_index", [len(row.images) * image_tokens for row in rows]) if images[-1] else None,
        images=tuple(image + start for row, start in zip(rows, images) for image in row.images),
        image_text=tuple(text for row in rows for text in row.image_text),
        lengths=tuple(map(len, rows)),
    )


@jax.tree_util.register_dataclass
@dataclass
class Batch:
    """Fixed-shape input of a step: B rows, L decoder positions, A audio slots of T aligner tokens each.

    Attributes:
        tokens: int32 [B, L] token ids (0 where audio or padding stands).
        positions: int32 [B, L] rotary positions; data, so that any published numbering can be expressed.
        q_segment_ids, kv_segment_ids: int32 [B, L]; a key is seen iff its id is not 0, equals the query's, and it is
            not later than the query.
        targets: int32 [B, L] next token of each position; loss_weight: float32 [B, L].
        audio_index: int32 [B, L] into the row's A*T aligner tokens, -1 for text.
        indicator_index: int32 [B, L] into the model's learnt indicator vectors, -1 for none.
        penalty_mask: bool [B, L] tokens whose ids a repetition penalty sees.
        audio: float [B, A, ...] one encoder window (front-end frames or precomputed features) a slot; None if no row
            hears anything.
        audio_samples: int32 [B, A] where `audio` holds samples [B, A, n], of which a step makes the windows: how many a
            slot has, 0 an empty one; else None.
        audio_clip: int32 [B, A] which clip of the row a slot belongs to, -1 for an empty slot.
        aligner_tokens, aligner_mask: int32 and bool [B, A, La] for aligners that read text, else None.
        image: float [B, I, H, W, 3] one front-end image a slot; None if no row sees anything.
        image_index: int32 [B, L] into the row's I*T aligner tokens of images, -1 for none; None without images.
        image_tokens, image_mask: as `aligner_tokens` and `aligner_mask`, [B, I, Li].
    """

    tokens: Array
    positions: Array
    q_segment_ids: Array
    kv_segment_ids: Array
    targets: Array
    loss_weight: Array
    audio_index: Array
    indicator_index: Array
    penalty_mask: Array
    audio: Array | None = None
    audio_samples: Array | None = None
    audio_clip: Array | None = None
    aligner_tokens: Array | None = None
    aligner_mask: Array | None = None
    image: Array | None = None
    image_index: Array | None = None
    image_tokens: Array | None = None
    image_mask: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows B, positions L)."""
        return self.tokens.shape

    def __getitem__(self, rows: Any) -> Batch:
        """The same batch for some rows (any index of the leading axis)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if v is None else v[rows] for name, v in values.items()})


def collate(
    rows: list[Row],
    length: int,
    *,
    slots: int,
    images: int = 0,
    pad: Literal["right", "left"] = "right",
    aligner_length: int | None = None,
) -> Batch:
    """Stack rows into the text half of a `Batch`; `audio` and `image` are added by whoever loads them.

    Args:
        rows: B rows, none longer than `length`.
        length: L.
        slots: A, audio slots a row (0: no audio at all). images: I, likewise.
        aligner_length: La; None: as the rows' texts need, and no texts if no row has one.
        pad: `right` for training; `left` aligns the last prompt token of all rows to one cache slot for generation.

    Pads carry segment id 0 on both sides, so that no position sees them; positions count true tokens only, those of
    each packed row for itself.
    """
    fills = {
        "tokens": 0,
        "targets": 0,
        "loss_weight": 0.0,
        "audio_index": -1,
        "indicator_index": -1,
        "penalty_mask": False,
    } | ({"image_index": -1} if images else {})
    dtypes = {"loss_weight": np.float32, "penalty_mask": np.bool_}
    columns = {n: np.full((len(rows), length), f, dtypes.get(n, np.int32)) for n, f in fills.items()}
    segments, positions = np.zeros((2, len(rows), length), np.int32)
    clips = np.full((len(rows), slots), -1, np.int32)
    for b, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"row of {len(row)} positions in a batch of {length}")
        place = slice(0, len(row)) if pad == "right" else slice(length - len(row), length)
        for name, column in columns.items():
            if (values := getattr(row, name)) is not None:
                column[b, place] = values
        lengths = row.lengths or (len(row),)
        segments[b, place] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        positions[b, place] = np.concatenate([np.arange(n) for n in lengths])
        clips[b, : len(row.clips)] = row.clips
    return Batch(
        positions=positions,
        q_segment_ids=segments,
        kv_segment_ids=segments.copy(),
        audio_clip=clips if slots else None,
        **_texts("aligner", [row.aligner_text for row in rows], slots, aligner_length),
        **_texts("image", [row.image_text for row in rows], images),
        **columns,
    )


def _texts(
    name: str, texts: list[tuple[tuple[int, ...], ...]], slots: int, length: int | None = None
) -> dict[str, np.ndarray]:
    """`{name}_tokens` and `{name}_mask` [B, slots, length] of the texts that an aligner reads with each row's slots."""
    if length is None:
        longest = max((len(text) for row in texts for text in row), default=0)
        length = -(-longest // _ALIGNER_BUCKET) * _ALIGNER_BUCKET
    if not length or not slots:
        return {}
    tokens, mask = np.zeros((len(texts), slots, length), np.int32), np.zeros((len(texts), slots, length), bool)
    for b, row in enumerate(texts):
        for slot, text in enumerate(row):
            tokens[b, slot, : len(text)] = text
            mask[b, slot, : len(text)] = True
    return {f"{name}_tokens": tokens, f"{name}_mask": mask}
