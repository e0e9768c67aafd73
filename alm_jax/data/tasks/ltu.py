"""LTU's closed-ended tasks: labels, acoustic features, captions and times, in its fixed formats of answers (Gong et al.
2024, section 3.1; official `openaqa/utils/combine_*.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from alm_jax.core.errors import ConfigError
from alm_jax.data.endpoint import Asker
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks import ltu_prompts as prompts
from alm_jax.data.tasks.asked import describe
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.draw import generator, pick, sample
from alm_jax.data.tasks.single import Asked, by_label, rows_of

_DESCRIPTIONS = 10  # of each sound class
_LEAD_SECONDS = 0.25  # sounds that begin closer to each other have no order that one could hear


class Sounds:
    """How the sounds of clips sound: by an event's own features, else by one of ten descriptions of its label.

    Args:
        clips: whose labels are described, where `ask` is there to describe them.
    """

    def __init__(self, clips: Iterable[LabelledClip], ask: Asker | None):
        bare = {label for clip in clips for label in clip.labels if not _own(clip, label)}
        self._told = {} if ask is None else describe(sorted(bare), prompts.DESCRIBE, ask, _DESCRIPTIONS)

    def feature(self, clip: LabelledClip, label: str, rng: np.random.Generator) -> str:
        """How a sound of a clip sounds, in words that begin with a capital; empty if nobody says."""
        told = self._told.get(label, ())
        text = _own(clip, label) or (pick(told, rng) if told else "")
        return text[:1].upper() + text[1:]


def classification(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """`Labels: Dog; Rain`."""
    if clip.labels:
        meta = {"labels": list(clip.labels)}
        yield Asked(pick(prompts.CLASSIFICATION, rng), f"Labels: {'; '.join(clip.labels)}", meta)


def features(clips: Sequence[LabelledClip], seed: int, ask: Asker | None, task: str) -> Iterator[AudioRow]:
    """`High-pitched and loud -> Siren; Dull -> Engine` of the sounds that have features."""
    sounds = Sounds(clips, ask)

    def one(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
        told = {label: sounds.feature(clip, label, rng) for label in clip.labels}
        told = {label: text for label, text in told.items() if text}
        if told:
            output = "; ".join(f"{text} -> {label}" for label, text in told.items())
            yield Asked(pick(prompts.FEATURES, rng), output, {"features": told})

    return rows_of(one, task, clips, seed)


def captioning(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """`Audio caption: A dog barks.`, a row a caption."""
    for caption in clip.captions:
        yield Asked(pick(prompts.CAPTIONING, rng), f"Audio caption: {caption}", {"captions": list(clip.captions)})


def temporal(clip: LabelledClip, rng: np.random.Generator) -> Iterator[Asked]:
    """When all sounds are heard, when one is, and in what order: up to three rows, as there are three files of them."""
    if not clip.events:
        return
    times = {label: spans(clip, label) for label in by_label(clip)}
    told = [[event.label, event.onset, event.offset] for event in clip.events]
    every = "; ".join(f"{label}: {span}" for label, span in times.items())
    yield Asked(pick(prompts.TEMPORAL, rng), every, {"events": told})
    label = pick(list(times), rng)
    mine = [event for event in told if event[0] == label]
    question = pick(prompts.TEMPORAL_ONE, rng).replace("{LABEL}", label)
    yield Asked(question, f"{label}: {times[label]}", {"events": mine})
    asked = [found for rule in ORDERS.values() if (found := rule(_placed(clip), rng))]
    if asked:
        yield pick(asked, rng)


def spans(clip: LabelledClip, label: str) -> str:
    """When a sound of a clip is heard: `[0.1s-0.8s, 5.6s-5.9s]`."""
    events = [event for event in clip.events if event.label == label]
    return f"[{', '.join(f'{event.onset:.1f}s-{event.offset:.1f}s' for event in events)}]"


def closed_ended(rows: Iterable[AudioRow], share: float, seed: int) -> Iterator[AudioRow]:
    """The rows, of which about this share say that they are closed-ended (half of them in LTU's last stage)."""
    for row in rows:
        names = (PurePath(clip).name for clip in row.clips)
        said = generator(seed, "closed", row.task, *names, row.instruction, row.output).random() < share
        yield replace(row, instruction=prompts.PREFIX + row.instruction) if said else row


def check_share(share: float, what: str) -> None:
    """Raise ConfigError unless it is one."""
    if not 0 <= share <= 1:
        raise ConfigError(f"{what} is {share}; expected a share, 0 to 1")


class _Placed(NamedTuple):
    """A sound, when it first begins, and when it was last heard."""

    label: str
    onset: float
    offset: float


Rule = Callable[[Sequence[_Placed], np.random.Generator], Asked | None]
"""A question about the order of a clip's sounds, which are given by onset; None where it does not apply."""


def _placed(clip: LabelledClip) -> list[_Placed]:
    return [
        _Placed(label, events[0].onset, max(event.offset for event in events))
        for label, events in by_label(clip).items()
    ]


def _apart(one: _Placed, other: _Placed) -> bool:
    return other.onset - one.onset >= _LEAD_SECONDS


def _said(texts: Sequence[str], rng: np.random.Generator, output: str, *labels: str, **words: str) -> Asked:
    question = pick(texts, rng)
    for name, word in words.items():  # not by format: a label may hold braces
        question = question.replace(f"{{{name}}}", word)
    return Asked(question, output, {"order": list(labels)})


def _sequence(sounds: Sequence[_Placed], rng: np.random.Generator) -> Asked | None:
    if len(sounds) < 2 or not all(_apart(*pair) for pair in pairwise(sounds)):
        return None
    labels = [sound.label for sound in sounds]
    return _said(prompts.ORDER, rng, f"Order: {'; '.join(labels)}", *labels)


def _first(sounds: Sequence[_Placed], rng: np.random.Generator) -> Asked | None:
    if len(sounds) < 2 or not _apart(*sounds[:2]):
        return None
    label = sounds[0].label
    return _said(prompts.FIRST, rng, f"First: {label}", label)


def _first_over(sounds: Sequence[_Placed], rng: np.random.Generator) -> Asked | None:
    """The first sound is over before any other one is."""
    if not _first(sounds, rng) or sounds[0].offset > min(sound.offset for sound in sounds[1:]) - _LEAD_SECONDS:
        return None
    label = sounds[0].label
    return _said(prompts.FIRST_OVER, rng, f"First: {label}", label)


def _last(sounds: Sequence[_Placed], rng: np.random.Generator) -> Asked | None:
    if len(sounds) < 2 or not _apart(*sounds[-2:]):
        return None
    label = sounds[-1].label
    return _said(prompts.LAST, rng, f"Last: {label}", label)


def _first_of_two(sounds: Sequence[_Placed], rng: np.random.Generator) -> Asked | None:
    pairs = [(one, other) for i, one in enumerate(sounds) for other in sounds[i + 1 :] if _apart(one, other)]
    if not pairs:
        return None
    labels = [sound.label for sound in pick(pairs, rng)]
    one, other = sample(labels, 2, rng)
    return _said(prompts.FIRST_OF_TWO, rng, f"First: {labels[0]}", *labels, ONE=one, OTHER=other)


def _next(sounds: Sequence[_Placed], rng: np.random.Generator) -> Asked | None:
    """The sound that begins next, where no other one begins as soon."""
    far = [*(_apart(*pair) for pair in pairwise(sounds)), True]
    places = [i for i in range(len(sounds) - 1) if far[i] and far[i + 1]]
    if not places:
        return None
    one, other = sounds[(place := pick(places, rng))].label, sounds[place + 1].label
    return _said(prompts.NEXT, rng, f"Next: {other}", one, other, LABEL=one)


ORDERS: Mapping[str, Rule] = {
    "sequence": _sequence,
    "first": _first,
    "first_over": _first_over,
    "last": _last,
    "first_of_two": _first_of_two,
    "next": _next,
}
"""Rules of questions about order: what begins first, last, next, first of two, first and is over first, and in which
sequence. All ask of a sound's first onset, and none of onsets that are less than a quarter of a second apart."""


def _own(clip: LabelledClip, label: str) -> str:
    """The features that a clip's events give."""
    return next((", ".join(event.features) for event in clip.events if event.label == label and event.features), "")
