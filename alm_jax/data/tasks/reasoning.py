"""Natural language audio reasoning (NLAR): questions that compare or sum up two recordings (APT, section IV).

Annotated events are rendered as the paper's table III has them; a writer (rules, or a language model) makes questions
and answers of two recordings so told. The order counts: each pair is asked about both ways round. Answers such as
`unknown` stay: models are to learn what cannot be heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.rows import AUDIO_MARK, AudioRow
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.data.tasks.draw import generator, sample

UNKNOWN = "unknown"
ORDINALS = ("first", "second")
THROUGHOUT = "throughout the recording"
_THROUGHOUT_SHARE = 0.7
_INSTRUCTION = f"{AUDIO_MARK}The first recording.{AUDIO_MARK}The second recording. "


@dataclass(frozen=True)
class Reasoning:
    """Which recordings are asked about.

    Attributes:
        pairs: how many pairs of clips, each in both orders; None: as many as there are clips
        questions: how many about a pair in one order, at most
    """

    pairs: int | None = None
    questions: int = 5

    def __post_init__(self) -> None:
        if self.questions < 1 or (self.pairs is not None and self.pairs < 1):
            raise ConfigError(f"NLAR of {self.pairs} pairs and {self.questions} questions; expected at least 1 of each")


@dataclass(frozen=True)
class Sound:
    """One kind of sound in a recording.

    Attributes:
        label: in words. features: how it sounds.
        times: how often it is heard; None if that cannot be counted.
        where: in which part of the recording, in words. seconds: its longest event. level_db: its loudest, if known.
    """

    label: str
    features: tuple[str, ...]
    times: int | None
    where: str
    seconds: float
    level_db: float | None


class Pair(NamedTuple):
    """Two recordings in their order, as their sounds tell them, and a name that both orders share."""

    first: tuple[Sound, ...]
    second: tuple[Sound, ...]
    name: str


class Question(NamedTuple):
    """A question about a pair and its answer: yes, no, first, second, both, a number, a word, or `unknown`."""

    text: str
    answer: str
    kind: str


class Writer(Protocol):
    """Makes questions and answers about pairs."""

    def __call__(self, pairs: Sequence[Pair], count: int, seed: int) -> Sequence[Sequence[Question]]:
        """Up to `count` questions about each pair, in the order of the pairs."""


def reasoning(clips: Sequence[LabelledClip], config: Reasoning, seed: int, writer: Writer) -> Iterator[AudioRow]:
    """Rows of two clips.

    Raises:
        DataError: fewer than two clips have events. Whatever the writer raises.
    """
    told = [clip for clip in clips if clip.events]
    if len(told) < 2:
        raise DataError(
            f"natural language audio reasoning needs two clips or more with events (label, onset, offset); "
            f"{len(told)} of {len(clips)} clips have them (alm scenes composes such)"
        )
    chosen = _pairs(told, config.pairs or len(told), seed)
    ordered = [pair for one, other in chosen for pair in ((one, other), (other, one))]
    pairs = [Pair(sounds_of(a), sounds_of(b), "|".join(sorted((a.name, b.name)))) for a, b in ordered]
    for (first, second), questions in zip(ordered, writer(pairs, config.questions, seed)):
        for text, answer, kind in questions:
            yield AudioRow(
                _INSTRUCTION + text,
                audio_id=(str(first.path), str(second.path)),
                task="nlar",
                output=answer,
                meta={"kind": kind, "question": text},
            )


def sounds_of(clip: LabelledClip) -> tuple[Sound, ...]:
    """A clip's events by label, in the order in which they are first heard."""
    groups: dict[str, list[ClipEvent]] = {}
    for event in clip.events:
        groups.setdefault(event.label, []).append(event)
    length = clip.seconds or max(event.offset for event in clip.events)
    return tuple(_sound(label, events, length) for label, events in groups.items())


def render(pair: Pair) -> str:
    """Both recordings as a writer is told of them (table III)."""

    def listed(sounds: Sequence[Sound]) -> str:
        return ";\n".join(
            sound.label
            + (f" ({', '.join(sound.features)})" if sound.features else "")
            + (f" [{sound.where}]" if sound.times is None else f" [{sound.times} times]")
            for sound in sounds
        )

    return f"- First:\n{listed(pair.first)};\nsecond:\n{listed(pair.second)}."


def _pairs(clips: Sequence[LabelledClip], count: int, seed: int) -> list[tuple[LabelledClip, LabelledClip]]:
    """Distinct pairs: every clip is in one before any is in two, and so on."""
    rng, chosen = generator(seed, "nlar"), {}
    for _ in range(2 * count):  # rounds: of few clips, some pairs come up again
        order = sample(range(len(clips)), len(clips), rng)
        for one, other in zip(order[::2], order[1::2]):
            if len(chosen) < count:
                chosen.setdefault(frozenset((one, other)), (clips[one], clips[other]))
        if len(chosen) == min(count, len(clips) * (len(clips) - 1) // 2):
            break
    return list(chosen.values())


def _sound(label: str, events: Sequence[ClipEvent], length: float) -> Sound:
    heard = sum(event.offset - event.onset for event in events)
    middle = sum((event.onset + event.offset) / 2 for event in events) / len(events)
    part = min(2, int(3 * middle / length))
    levels = [event.level_db for event in events if event.level_db is not None]
    return Sound(
        label=label,
        features=events[0].features,
        times=len(events) if all(event.countable for event in events) else None,
        where=(
            THROUGHOUT
            if heard >= _THROUGHOUT_SHARE * length
            else ("in the beginning", "in the middle", "in the end")[part]
        ),
        seconds=max(event.offset - event.onset for event in events),
        level_db=max(levels, default=None),
    )
