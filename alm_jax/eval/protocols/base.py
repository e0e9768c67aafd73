"""What a protocol gets and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from alm_jax.core.errors import DataError
from alm_jax.data.endpoint import Endpoint
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.draw import generator
from alm_jax.eval.metrics.classes import Calibration
from alm_jax.eval.metrics.text import TextEncoder
from alm_jax.infer.batch import OWN, Choices
from alm_jax.infer.clap import LoadedClap
from alm_jax.infer.loaded import LoadedModel

How = Literal["generate", "choices", "embed"]
"""Answers are written freely; are the likeliest of given ones; or are embeddings of clips."""
QUESTION = "{QUESTION}"
"""In a prompt: a question of the data."""


@dataclass(frozen=True)
class Asking:
    """What questions are made with.

    Attributes:
        prompt: the question, or its template.
        classes: labels of the whole collection, whatever the split.
        about: by path, what else is known of a clip (`eval.data.Collection`).
        folder: where clips are written that a protocol composes.
        seed: of what is drawn.
        options: numbers that a protocol leaves open (`Task.options`).
    """

    prompt: str
    classes: tuple[str, ...]
    folder: Path
    about: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    options: Mapping[str, int] = field(default_factory=dict)

    def about_question(self, question: str) -> str:
        """The prompt with a question of the data in its place."""
        return self.prompt.replace(QUESTION, question)


@dataclass(frozen=True)
class Answer:
    """A row with what the model made of it.

    Attributes:
        said: its answer. failed: it could not be asked, and has none; that counts as wrong.
        scores: mean log-likelihood of each choice, where there are choices.
        vector: the clip's embedding, where clips are embedded.
    """

    row: AudioRow
    said: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    vector: np.ndarray | None = None
    failed: bool = False


@dataclass(frozen=True)
class Scoring:
    """What answers are scored with.

    Attributes:
        how: answers were got. classes: as of `Asking`.
        encoder: gives the sentence encoder, loaded on first use. model: the one that answered.
        tag_scorer: gives `infer.tagging.TagScorer` of classes in the place of the encoder, or None.
        errors: gives FENSE's detector of errors of fluency, loaded on first use, or None.
        spice: folder of SPICE's jars. judge: a language model that judges answers; `folder`: keeps what it says.
    """

    how: How
    classes: tuple[str, ...]
    encoder: Callable[[], TextEncoder]
    model: LoadedModel | LoadedClap
    folder: Path
    tag_scorer: Callable[[Sequence[str]], Callable[[Sequence[str]], np.ndarray]] | None = None
    errors: Callable[[], Callable[[Sequence[str]], np.ndarray]] | None = None
    spice: Path | None = None
    judge: Endpoint | None = None
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass
class Scores:
    """What a benchmark finds.

    Attributes:
        metrics: by name, the main one first; NaN where one cannot be counted.
        rows: what was read from each answer, in the order of the answers.
        classes: the names beside `confusion`, int [C, C], true by said.
        per_class: by metric, the value of each class.
        calibration: of how sure it was. `sure`: what that is, in words.
        notes: what was left out or done otherwise.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    classes: tuple[str, ...] = ()
    confusion: np.ndarray | None = None
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    calibration: Calibration | None = None
    sure: str = "probability"
    notes: tuple[str, ...] = ()


class Task(ABC):
    """One way to ask and to score.

    Attributes:
        needs: what clips must have, in words. hows: ways to get answers, the usual one first.
        options: numbers that it leaves open, with their usual values. judged: a language model has to judge answers.
    """

    needs: ClassVar[str]
    judged = False
    hows: ClassVar[tuple[How, ...]] = ("generate",)
    options: ClassVar[Mapping[str, int]] = {}

    @abstractmethod
    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        """The questions."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        """The scores of all answers."""

    def choices(self, asking: Asking) -> Choices:
        """What is chosen from, where answers are choices; by default what each row says."""
        return OWN

    def check(self, scoring: Scoring) -> None:
        """Raise UsageError, before anything is asked, where what scores answers is not there."""
        return None


def one_row(clip: LabelledClip, text: str, task: str, output: str, /, **meta: Any) -> AudioRow:
    """A question about one clip."""
    return AudioRow(text, audio_id=str(clip.path), task=task, output=output, meta=meta)


def meta_of(row: AudioRow, name: str) -> Any:
    """Raise DataError for rows of another task."""
    if name not in row.meta:
        raise DataError(f"row of {row.audio_id}: its meta has no {name}: these rows are of another benchmark")
    return row.meta[name]


def drawn(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers of one thing, which no other thing changes."""
    return generator(seed, "eval", *names)
