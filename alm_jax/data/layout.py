"""From parts to a row: tokenizing, truncation, EOS and label rules, and where audio stands.

The rules are those of LTU's published code (`finetune.py`, `tokenize` and `generate_and_tokenize_prompt`), written for
any order of text and audio: what a `Layout` leaves open is how a system differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from alm_jax.core.sequence import Audio, Image, Layout, Part, Row, Text
from alm_jax.data.tokenizer import Tokenizer


class Tokens(NamedTuple):
    """The text of an example.

    Attributes:
        ids: its ids, BOS and EOS included.
        learn: which of them are learnt (what official code calls labels; False = -100).
        placed: (number of ids before it, part) for each clip and image.
    """

    ids: list[int]
    learn: list[bool]
    placed: list[tuple[int, Audio | Image]]


def tokenize(parts: Sequence[Part], layout: Layout, tokenizer: Tokenizer) -> Tokens:
    """Tokenize the text of an example and mark what is learnt.

    Text parts that touch are one string, unless the layout keeps them `apart`. All ids together, BOS counted, are cut
    to `layout.max_text_tokens`, and nothing follows a cut, audio included. EOS follows iff the last part is to be
    learnt, it is not there already, and there is room. With `loss_on="answer"` the border between prompt and answer is
    at the prompt's own number of tokens.
    """
    groups = _groups(parts, layout)
    runs = [tokenizer.encode(_text(group)) for group in groups if isinstance(group, list)]
    return _assemble(groups, runs, layout, tokenizer)


def lay_out(
    parts: Sequence[Part],
    layout: Layout,
    tokenizer: Tokenizer,
    *,
    audio_tokens: int,
    image_tokens: int = 0,
    slots: Sequence[int] | None = None,
    aligner_tokenizer: Tokenizer | None = None,
) -> Row:
    """The row of an example.

    Args:
        parts: text, audio and images in the order in which they are read.
        audio_tokens: T, the aligner's tokens a slot. image_tokens: likewise, of an image.
        slots: number of slots that each clip takes, by clip number; None: one each.
        aligner_tokenizer: of an aligner that reads text (`layout.aligner_text_tokens`).

    A position learns to predict the next id where that id is learnt; BOS itself is never predicted.
    """
    text = tokenize(parts, layout, tokenizer)
    cells: list[tuple[int, int, int, int, int]] = []  # token, learnt, audio index, indicator index, image index
    clips: list[int] = []
    images: list[int] = []
    read = _aligner_texts(parts, layout, aligner_tokenizer)
    aligner_text: list[tuple[int, ...]] = []
    image_text: list[tuple[int, ...]] = []
    done = 0
    for before, part in [*text.placed, (len(text.ids), None)]:
        cells += [(i, learn, -1, -1, -1) for i, learn in zip(text.ids[done:before], text.learn[done:before])]
        done = before
        if isinstance(part, Image):
            if part.image not in images:
                images.append(part.image)
                image_text += [read[part]] if read else []
            start = images.index(part.image) * image_tokens
            cells += [(0, False, -1, -1, i) for i in range(start, start + image_tokens)]
        elif isinstance(part, Audio):
            count = 1 if slots is None else slots[part.clip]
            if part.clip not in clips:  # one that is heard again takes no further slots
                clips += [part.clip] * count
                aligner_text += [read[part]] * count if read else []
            start = clips.index(part.clip) * audio_tokens
            cells += [(0, False, -1, i, -1) for i in range(layout.indicators)]
            cells += [(0, False, i, -1, -1) for i in range(start, start + count * audio_tokens)]

    tokens, learnt, audio, indicator, image = np.array(cells, np.int32).reshape(-1, 5).T.copy()
    is_text = (audio < 0) & (indicator < 0) & (image < 0)
    if _opening(layout, tokenizer) and is_text.any():
        learnt[is_text.argmax()] = 0
    return Row(
        tokens=tokens,
        audio_index=audio,
        indicator_index=indicator,
        targets=np.append(tokens[1:], np.int32(0))[: len(tokens)],
        loss_weight=np.append(learnt[1:], 0)[: len(tokens)].astype(np.float32),
        penalty_mask=is_text & layout.penalize_prompt,
        clips=tuple(clips),
        aligner_text=tuple(aligner_text),
        image_index=image if images else None,
        images=tuple(images),
        image_text=tuple(image_text),
    )


def lay_out_prompt(
    parts: Sequence[Part],
    layout: Layout,
    tokenizer: Tokenizer,
    *,
    audio_tokens: int,
    image_tokens: int = 0,
    slots: Sequence[int] | None = None,
    aligner_tokenizer: Tokenizer | None = None,
) -> Row:
    """The row of a prompt, to generate from: `lay_out` without learnt text at the end, without EOS and never cut."""
    parts = list(parts)
    while parts and isinstance(parts[-1], Text) and parts[-1].loss:
        parts.pop()
    layout = replace(layout, eos=False, max_text_tokens=sys.maxsize)
    options = {"audio_tokens": audio_tokens, "image_tokens": image_tokens, "slots": slots}
    return lay_out(parts, layout, tokenizer, **options, aligner_tokenizer=aligner_tokenizer)


def row_lengths(
    examples: Iterable[Sequence[Part]],
    layout: Layout,
    tokenizer: Tokenizer,
    *,
    audio_tokens: int,
    image_tokens: int = 0,
    slots: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """int32 [n]: `len(lay_out(parts, ..., slots=slots[i]))` of many examples, tokenized on all cores."""
    layout = replace(layout, loss_on="all")  # labels do not change lengths, and cost a second tokenizing
    grouped = [_groups(parts, layout) for parts in examples]
    runs = tokenizer.encode_batch([_text(g) for groups in grouped for g in groups if isinstance(g, list)])
    lengths, at = np.zeros(len(grouped), np.int32), 0
    for i, groups in enumerate(grouped):
        count = sum(isinstance(g, list) for g in groups)
        tokens = _assemble(groups, runs[at : at + count], layout, tokenizer)
        lengths[i] = len(tokens.ids)
        for _, part in tokens.placed:
            if isinstance(part, Image):
                lengths[i] += image_tokens
            else:
                lengths[i] += layout.indicators + audio_tokens * (1 if slots is None else slots[i][part.clip])
        at += count
    return lengths


def _opening(layout: Layout, tokenizer: Tokenizer) -> list[int]:
    """The id that opens a text, if any."""
    opening = tokenizer.eos_id if layout.opens_with == "eos" else tokenizer.bos_id
    return [] if opening is None else [opening]


def _aligner_texts(
    parts: Sequence[Part], layout: Layout, tokenizer: Tokenizer | None
) -> dict[Audio | Image, tuple[int, ...]]:
    """What an aligner reads with each clip and image: the prompt or answer that follows next, or an image's own."""
    if not layout.aligner_text_tokens or tokenizer is None:
        return {}
    texts: dict[Audio | Image, str] = {}
    following, answers = "", layout.aligner_reads == "answer"
    for part in reversed(parts):
        if isinstance(part, Image):
            texts[part] = following if part.prompt is None else part.prompt
        elif isinstance(part, Audio):
            texts[part] = following
        elif part.loss == answers:
            following = part.text
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    room = layout.aligner_text_tokens - len(opening) - 1
    ids = {part: tokenizer.encode(text + layout.aligner_gap) for part, text in texts.items()}
    begins = {part: 0 if answers else max(0, len(run) - room) for part, run in ids.items()}
    return {part: (*opening, *run[begins[part] :][:room], tokenizer.eos_id) for part, run in ids.items()}


def _groups(parts: Sequence[Part], layout: Layout) -> list[Audio | Image | list[Text]]:
    groups: list[Audio | Image | list[Text]] = []
    for part in parts:
        if not isinstance(part, Text):
            groups.append(part)
        elif groups and isinstance(groups[-1], list) and not layout.apart:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _text(texts: list[Text]) -> str:
    return "".join(t.text for t in texts)


def _assemble(
    groups: list[Audio | Image | list[Text]], runs: list[list[int]], layout: Layout, tokenizer: Tokenizer
) -> Tokens:
    """Put together the groups of one example; `runs` are the ids of its groups of text, in order."""
    learn_all = layout.loss_on == "all"
    bos = _opening(layout, tokenizer)
    ids: list[int] = []
    learn: list[bool] = []
    placed: list[tuple[int, Audio | Image]] = []
    runs_left = iter(runs)
    opened = False

    def open_text() -> None:
        ids.extend(bos)
        learn.extend([learn_all] * len(bos))

    before = {"first": (), "after_images": Image, "after_audio": (Audio, Image)}[layout.bos]
    for group in groups:
        if not opened and not isinstance(group, before):
            open_text()
            opened = True
        if not isinstance(group, list):
            placed.append((len(ids), group))
            continue
        run = next(runs_left)
        if layout.apart:
            run = _cut(run, group[0], layout)
        kept = run[: max(0, layout.max_text_tokens - len(ids))]
        learn.extend([True] * len(kept) if learn_all else _learnt(group, len(kept), tokenizer))
        ids.extend(kept)
        if len(kept) < len(run):
            break
    ends_learnt = bool(groups) and isinstance(groups[-1], list) and groups[-1][-1].loss
    room = len(ids) < layout.max_text_tokens
    if layout.apart and layout.max_answer_tokens is not None and ends_learnt:
        room &= len(runs[-1]) < layout.max_answer_tokens
    if layout.eos and ends_learnt and room and ids[-1:] != [tokenizer.eos_id]:
        ids.append(tokenizer.eos_id)
        learn.append(True)
    return Tokens(ids, learn, placed)


def _cut(run: list[int], text: Text, layout: Layout) -> list[int]:
    """The ids of a part that is tokenized apart, as far as it may be long."""
    if text.loss:
        return run[: layout.max_answer_tokens]
    return run if layout.max_prompt_tokens is None else run[max(0, len(run) - layout.max_prompt_tokens) :]


def _learnt(texts: list[Text], length: int, tokenizer: Tokenizer) -> list[bool]:
    """Which of a run's `length` ids are learnt: a border lies where the text before it, tokenized alone, ends."""
    learn: list[bool] = []
    for i, text in enumerate(texts):
        last = i == len(texts) - 1
        border = length if last else min(length, len(tokenizer.encode(_text(texts[: i + 1]))))
        learn.extend([text.loss] * (border - len(learn)))
    return learn
