"""Tasks about one clip: tagging, captioning, question answering, detection, retrieval and counting (APT, III-C)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks import prompts
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.data.tasks.draw import generator, pick

_AUDIBLE = 0.3  # seconds of a sound, or all of a shorter one, that an interval must hold for its name to be asked for
_TRIES = 20


class Asked(NamedTuple):
    """A question about a clip, its answer, and the answer as data."""

    instruction: str
    output: str
    meta: dict[str, Any]


Ask = Callable[[LabelledClip, np.random.Generator], Iterator[Asked]]


def rows_of(ask: Ask, task: str, clips: list[LabelledClip], seed: int) -> Iterator[AudioRow]:
    """The rows of a task, clip by clip; those of one clip do not depend on the others."""
    for clip in clips:
        for instruction, output, meta in ask(clip, generator(seed, task, clip.name)):
            yield AudioRow(instruction, audio_id=str(clip.path), task=task, output=output, meta=meta)


def tagging(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """`dog bark; rain`."""
    if clip.labels:
        yield Asked(pick(prompts.TAGGING, rng), "; ".join(clip.labels), {"labels": list(clip.labels)})


def captioning(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """A row a caption."""
    for caption in clip.captions:
        yield Asked(pick(prompts.CAPTIONING, rng), caption, {"captions": list(clip.captions)})


def answering(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """A row a question of the manifest's."""
    for question, answer in clip.questions:
        yield Asked(question, answer, {})


def detection(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """When each sound is heard: `1.0s-2.5s; 3.0s-4.0s.` (official `evaluate_ted.py`)."""
    for label, events in by_label(clip).items():
        spans = "; ".join(f"{event.onset:.1f}s-{event.offset:.1f}s" for event in events)
        meta = {"events": [[label, event.onset, event.offset] for event in events]}
        yield Asked(pick(prompts.DETECTION, rng).format(LABEL=label), f"{spans}.", meta)


def retrieval(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """Which sounds an interval holds; one interval a clip, which cuts no sound so short that it cannot be told."""
    for _ in range(_TRIES if clip.events else 0):
        start, end = _interval(clip, rng)
        shares = [min(event.offset, end) - max(event.onset, start) for event in clip.events]
        heard = [share >= min(_AUDIBLE, event.offset - event.onset) for share, event in zip(shares, clip.events)]
        if any(heard) and all(told or share <= 0 for share, told in zip(shares, heard)):
            labels = list(dict.fromkeys(event.label for event, told in zip(clip.events, heard) if told))
            instruction = pick(prompts.RETRIEVAL, rng).format(STT=f"{start:.1f}", EDT=f"{end:.1f}")
            yield Asked(instruction, "; ".join(labels), {"labels": labels, "interval": [start, end]})
            return


def counting(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """How often each sound is heard that can be counted."""
    for label, events in by_label(clip).items():
        if all(event.countable for event in events):
            instruction = pick(prompts.COUNTING, rng).format(LABEL=label)
            yield Asked(instruction, str(len(events)), {"label": label, "count": len(events)})


def by_label(clip: LabelledClip) -> dict[str, list[ClipEvent]]:
    """A clip's events of each label, labels by their first onset."""
    groups: dict[str, list[ClipEvent]] = {}
    for event in clip.events:
        groups.setdefault(event.label, []).append(event)
    return groups


def _interval(clip: LabelledClip, rng: np.random.Generator) -> tuple[float, float]:
    """Tenths of seconds around a moment of some event."""
    event, length = pick(clip.events, rng), clip.seconds or max(event.offset for event in clip.events)
    moment = rng.uniform(event.onset, event.offset)
    start, end = rng.uniform(0, moment), rng.uniform(moment, max(length, event.offset))
    return round(float(start), 1), round(float(end), 1)
