"""AVQA (Yang et al. 2022): questions about videos and their sound, each with four options, of which one is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alm_jax.core.errors import DataError
from alm_jax.infer.clips import Clip
from alm_jax.infer.images import Picture
from alm_jax.infer.loaded import LoadedModel

OPTIONS = 4
PROMPT = (
    "Choose the correct option to the following question: {question} "
    "Options: 0 {0}; 1 {1}; 2 {2}; 3 {3}. Answer:"
)  # `_AVQA_PROMPT_` of APT's `swift_vicuna_instruct.py`


@dataclass(frozen=True)
class Question:
    """A question of the data set.

    Attributes:
        video: name of the video. choices: the options. answer: which is right.
    """

    video: str
    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """What APT-BLIP-2 is asked."""
        return PROMPT.format(*self.choices, question=self.text)


def read_questions(path: str | os.PathLike) -> list[Question]:
    """The questions of a published file (`train_qa.json`, `val_qa.json`).

    Raises:
        DataError: it cannot be read, or a question is incomplete; the message names it.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}): give AVQA's val_qa.json") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds a JSON {type(entries).__name__}, expected a list of questions")
    return [_question(entry, f"{path}: question {i}") for i, entry in enumerate(entries)]


def _question(entry: object, name: str) -> Question:
    try:
        video, text, choices, answer = (entry[key] for key in ("video_name", "question_text", "multi_choice", "answer"))
    except (KeyError, TypeError) as error:
        raise DataError(f"{name}: no {error}; expected video_name, question_text, multi_choice and answer") from error
    if len(choices) != OPTIONS or answer not in range(OPTIONS):
        raise DataError(f"{name}: {len(choices)} options and answer {answer!r}; expected {OPTIONS}, and one of them")
    return Question(str(video), str(text), tuple(map(str, choices)), answer)


def choose(
    model: LoadedModel,
    questions: Sequence[Question],
    videos: Callable[[str], tuple[Sequence[Picture], Clip | None]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[int]:
    """The option that the model holds most likely for each question, by mean log-likelihood of its text.

    Args:
        videos: from the name of a video to its frames, in order, and its sound (None: it is not heard).
        progress: called with (done, all).

    Raises:
        UsageError: the model does not see. AudioError, DataError: a video cannot be used.
    """
    chosen = []
    for done, question in enumerate(questions, start=1):
        frames, clip = videos(question.video)
        scores = model.rank(question.prompt, question.choices, clip, images=frames)
        chosen.append(question.choices.index(next(iter(scores))))
        progress(done, len(questions))
    return chosen


def accuracy(questions: Sequence[Question], chosen: Sequence[int]) -> float:
    """Share of questions whose chosen option (`choose`) is right."""
    return float(np.mean([question.answer == choice for question, choice in zip(questions, chosen, strict=True)]))
