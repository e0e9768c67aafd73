"""Classification: free answers matched with classes by their meaning (LTU), classes ranked, or clips and classes
embedded (CLAP)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alm_jax.core.errors import DataError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.eval.choices import wilson
from alm_jax.eval.metrics.classes import accuracy, calibration, confusion, micro_f1, per_class, softmax
from alm_jax.eval.metrics.tags import average_precision
from alm_jax.eval.metrics.text import class_similarity
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, meta_of, one_row
from alm_jax.eval.retrieval import class_embeddings


def after_colon(text: str) -> str:
    """What follows the last colon (`Labels: dog bark`), all of it without one (LTU `eval_esc.py`).

    Scripts of other sets drop one character more, which eats the first letter where no blank follows the colon.
    """
    return text.split(":")[-1].strip()


def after_caption(text: str) -> str:
    """What follows `Audio caption: `, all of it without that, quotes left out (LTU `eval_vggsound.py`, `eval_as.py`).

    The scripts drop two characters in any case, also of answers without the words.
    """
    plain = text.replace('"', "")
    return plain.split("Audio caption")[-1].lstrip(": ").strip() if "Audio caption" in plain else plain.strip()


def underscores_apart(name: str) -> str:
    """A class as text: `dog_bark` is `dog bark` (LTU `eval_esc.py`)."""
    return name.replace("_", " ")


def without_commas(name: str) -> str:
    """`Air horn, truck horn` is `Air horn truck horn` (LTU `eval_dcase.py` and its list of classes)."""
    return underscores_apart(name).replace(",", "")


@dataclass(frozen=True)
class Classify(Task):
    """Clips and their labels.

    Attributes:
        many: a clip has several labels: mean average precision is the main score. Else the first label is true.
        read: what of a free answer is compared. spell: a class as answers are compared with it.
    """

    many: bool = False
    read: Callable[[str], str] = after_colon
    spell: Callable[[str], str] = underscores_apart
    needs = "labels"
    hows = ("generate", "choices", "embed")

    def check(self, scoring: Scoring) -> None:
        if scoring.how == "generate" and scoring.tag_scorer is None:
            scoring.encoder()

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        if len(asking.classes) == 1:
            raise DataError(
                f"all have the label {asking.classes[0]!r}, there is nothing to tell apart; give a prepared set (alm "
                "data prepare), a manifest, or a folder with one sub-folder a label"
            )
        for clip in clips:
            if clip.labels:
                labels = list(clip.labels if self.many else clip.labels[:1])
                yield one_row(clip, asking.prompt, "classification", "; ".join(labels), labels=labels)

    def choices(self, asking: Asking) -> Sequence[str]:
        return asking.classes

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        heard = np.array([not answer.failed for answer in answers])
        if not heard.any():
            raise DataError("no clip could be heard: there is nothing to score")
        number = {label: i for i, label in enumerate(scoring.classes)}
        truth = np.zeros((len(answers), len(number)), bool)
        for row, answer in zip(truth, answers):
            row[[number[label] for label in meta_of(answer.row, "labels")]] = True
        scores = np.full(truth.shape, np.nan)
        scores[heard] = self._class_scores([answer for answer in answers if not answer.failed], scoring)
        found = (
            self._many(answers, truth, scores, scoring) if self.many else _single(truth[heard], scores[heard], scoring)
        )
        if not self.many:
            _count_failed(found, heard)
        for told, answer, row in zip(found.rows, answers, scores):
            if not answer.failed:
                best = row.argmax()
                told |= {"read": self.read(answer.said), "best": scoring.classes[best], "score": float(row[best])}
        return found

    def _class_scores(self, answers: Sequence[Answer], scoring: Scoring) -> np.ndarray:
        """How much of each class is in each answer, [N, C]."""
        if scoring.how == "embed":
            return np.stack([answer.vector for answer in answers]) @ class_embeddings(scoring.model, scoring.classes).T
        if scoring.how == "choices":
            return np.array([[answer.scores[name] for name in scoring.classes] for answer in answers])
        return self._compare([self.read(answer.said) for answer in answers], scoring)

    def _many(self, answers: Sequence[Answer], truth: np.ndarray, scores: np.ndarray, scoring: Scoring) -> Scores:
        scores = np.where(np.isnan(scores), np.nanmin(scores) - 1, scores)  # a clip that was not heard comes last
        each = average_precision(scores, truth)
        metrics = {"map": float(np.nanmean(each))}
        if scoring.how == "generate":
            metrics["micro_f1"] = micro_f1(truth, self._named(answers, scoring))
        ap = {name: float(value) for name, value in zip(scoring.classes, each) if not np.isnan(value)}
        right = truth[np.arange(len(truth)), scores.argmax(1)] & [not answer.failed for answer in answers]
        metrics["top1_in_labels"] = float(right.mean())
        return Scores(metrics, [{"right": bool(hit)} for hit in right], per_class={"average precision": ap})

    def _named(self, answers: Sequence[Answer], scoring: Scoring) -> np.ndarray:
        """The class nearest to each item of an answer's list, bool [N, C]."""
        said = [self.read(answer.said) for answer in answers]
        items = [[item for item in re.split(r"[;,]", text) if item.strip()] for text in said]
        named = np.zeros((len(answers), len(scoring.classes)), bool)
        flat = list(dict.fromkeys(item.strip() for group in items for item in group))
        nearest = dict(zip(flat, self._compare(flat, scoring).argmax(1))) if flat else {}
        for row, group in zip(named, items):
            row[[nearest[item.strip()] for item in group]] = True
        return named

    def _compare(self, texts: Sequence[str], scoring: Scoring) -> np.ndarray:
        if scoring.tag_scorer is not None:
            return scoring.tag_scorer(scoring.classes)(texts)
        return class_similarity(texts, [self.spell(name) for name in scoring.classes], scoring.encoder())


def _single(truth: np.ndarray, scores: np.ndarray, scoring: Scoring) -> Scores:
    true, said = truth.argmax(1), scores.argmax(1)
    counts = confusion(true, said, len(scoring.classes))
    each = per_class(counts)
    present = counts.sum(1) > 0
    likely = softmax(scores) if scoring.how == "choices" else np.clip(scores, 0, 1)
    sure = calibration(likely.max(1), true == said)
    metrics = {
        "accuracy": accuracy(true, said),
        "macro_f1": float(each["f1"][present].mean()),
        "chance": 1 / len(scoring.classes),
    }
    if scoring.how == "choices":
        metrics["calibration_error"] = sure.error
    names = scoring.classes
    return Scores(
        metrics,
        [{"right": bool(hit)} for hit in true == said],
        names,
        counts,
        {key: {names[i]: float(v[i]) for i in np.flatnonzero(present)} for key, v in each.items()},
        sure,
        "probability among the classes" if scoring.how == "choices" else "cosine with the nearest class",
    )


def _count_failed(found: Scores, heard: np.ndarray) -> None:
    """Accuracy with its interval over all clips, those wrong that were not heard."""
    rows = iter(found.rows)
    found.rows = [next(rows) if there else {"right": False} for there in heard]
    right = sum(row["right"] for row in found.rows)
    low, high = wilson(right, len(heard))
    found.metrics = {"accuracy": right / len(heard), "accuracy_low": low, "accuracy_high": high} | {
        name: value for name, value in found.metrics.items() if name != "accuracy"
    }
