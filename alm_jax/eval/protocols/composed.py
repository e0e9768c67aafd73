"""Probes on clips made of a collection's: which of two sounds comes first, one or two of them, and how high (LTU,
appendices H and K)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from alm_jax.audio.io import load_audio
from alm_jax.core.errors import DataError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.draw import sample
from alm_jax.eval.choices import wilson
from alm_jax.eval.compose import RATE, one_after_another, shift_pitch, write_clip
from alm_jax.eval.metrics.answers import first_named, pitch
from alm_jax.eval.metrics.spread import by_group, pearson
from alm_jax.eval.metrics.text import class_similarity
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, drawn, meta_of
from alm_jax.eval.protocols.events import LABEL, count_scores

SECONDS = 10.0  # of a clip: what LTU hears
_LONGEST = 4.75  # of each of two, with a pause between
_SEMITONES = (-12, -8, -4, 0, 4)


@dataclass(frozen=True)
class Order(Task):
    """Two sounds of different classes, one after the other: which begins first?

    Answers that name neither, and mean neither more than the other, are left out, as the paper leaves out answers that
    do not follow the instruction; `followed` is the share of those that count.
    """

    needs = "labels"
    hows = ("generate", "choices")
    options: ClassVar[Mapping[str, int]] = {"pairs": 550}

    def check(self, scoring: Scoring) -> None:
        if scoring.how == "generate":
            scoring.encoder()

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        single = _single(clips)
        for i in range(asking.options["pairs"]):
            rng = drawn(asking.seed, "order", i)
            labels = sample(sorted(single), 2, rng)
            pair = [sample(single[label], 1, rng)[0] for label in labels]
            path = asking.folder / f"order{i:04d}.flac"
            write_clip(path, one_after_another([clip.path for clip in pair], _LONGEST))
            # In the alphabet's order: an answer that means both alike must not be right by the order of the choices.
            choices = sorted(labels)
            yield AudioRow(asking.prompt, audio_id=str(path), task="order", output=labels[0], meta={"choices": choices})

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        like = partial(_meant, scoring)
        asked = [meta_of(answer.row, "choices") for answer in answers]
        named = [
            answer.said if scoring.how == "choices" else first_named(answer.said, *pair, like)
            for answer, pair in zip(answers, asked)
        ]
        right = [name == answer.row.output for name, answer in zip(named, answers) if name is not None]
        low, high = wilson(sum(right), len(right))
        metrics = {
            "accuracy": float(np.mean(right)) if right else float("nan"),
            "accuracy_low": low,
            "accuracy_high": high,
            "followed": len(right) / len(answers),
            "chance": 0.5,
        }
        rows = [{"read": name, "right": name == answer.row.output} for name, answer in zip(named, answers)]
        return Scores(metrics, rows)


@dataclass(frozen=True)
class Twice(Task):
    """A clip of one sound, or two of them one after the other: how many?"""

    needs = "labels, two clips each"
    hows = ("generate",)
    options: ClassVar[Mapping[str, int]] = {"pairs": 10}

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for label, mine in sorted(_single(clips).items()):
            if len(mine) < 2:
                continue
            for i in range(asking.options["pairs"]):
                pair = sample(mine, 2, drawn(asking.seed, "twice", label, i))
                for number in (1, 2):
                    path = asking.folder / f"{'_'.join(label.split())}-{i:03d}-{number}.flac"
                    write_clip(path, one_after_another([clip.path for clip in pair[:number]], _LONGEST))
                    yield AudioRow(
                        asking.prompt.replace(LABEL, label),
                        audio_id=str(path),
                        task="counting",
                        output=str(number),
                        meta={"label": label, "count": number},
                    )

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        return count_scores(answers)


@dataclass(frozen=True)
class Pitch(Task):
    """A class of sounds shifted in pitch: does the answer follow the pitch, or the class (LTU, figure 2)?

    Attributes:
        word: labels with it are probed.
    """

    word: str = "siren"
    needs = "labels with `siren` in them"
    hows = ("generate",)
    options: ClassVar[Mapping[str, int]] = {"clips": 53}

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        chosen = [clip for clip in clips if any(self.word in label.lower() for label in clip.labels)]
        for i, clip in enumerate(chosen[: asking.options["clips"]]):
            samples = load_audio(clip.path, sample_rate=RATE, max_seconds=SECONDS)[0]
            for semitones in _SEMITONES:
                path = asking.folder / f"pitch{i:03d}{semitones:+d}.flac"
                write_clip(path, shift_pitch(samples, semitones))
                yield AudioRow(asking.prompt, audio_id=str(path), task="pitch", meta={"semitones": semitones})

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        shifts = [meta_of(answer.row, "semitones") for answer in answers]
        read = [pitch(answer.said) for answer in answers]
        told = [(shift, value) for shift, value in zip(shifts, read) if value is not None]
        metrics = {"pearson": pearson(*zip(*told)) if told else float("nan"), "followed": len(told) / len(answers)}
        groups = by_group([f"{shift:+03d} semitones" for shift, _ in told], [value for _, value in told])
        shares = {
            name: {group: float((values == sign).mean()) for group, values in groups.items()}
            for name, sign in (("high", 1), ("low", -1))
        }
        return Scores(metrics, [{"read": value} for value in read], per_class=shares)


def _single(clips: Sequence[LabelledClip]) -> dict[str, list[LabelledClip]]:
    """Clips of one label, by it.

    Raises:
        DataError: there are not two labels.
    """
    groups: dict[str, list[LabelledClip]] = {}
    for clip in clips:
        if len(clip.labels) == 1:
            groups.setdefault(clip.labels[0], []).append(clip)
    if len(groups) < 2:
        raise DataError(f"{len(groups)} labels have clips of their own: this probe needs two or more")
    return groups


def _meant(scoring: Scoring, clause: str, a: str, b: str) -> int:
    return int(class_similarity([clause], [a, b], scoring.encoder())[0].argmax())
