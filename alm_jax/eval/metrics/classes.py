"""Classification: accuracy, F1, confusion, calibration, from scores of classes or sets of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alm_jax.core.errors import UsageError

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """How sure a model is, and how right (Guo et al. 2017), by bins of equal width; bins without answers are left out.

    Attributes:
        confidence, accuracy: means of each bin. counts: answers in it.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by the counts."""
        apart = np.abs(np.subtract(self.confidence, self.accuracy))
        return float(np.average(apart, weights=self.counts))


def accuracy(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Share of equal numbers; of single-label classification it is the micro-F1 too."""
    truth, predicted = _same(truth, predicted)
    return float((truth == predicted).mean())


def confusion(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """How many clips of each class (row) were taken for which (column), int [C, C]."""
    truth, predicted = _same(truth, predicted)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 [C] of each class of a confusion matrix; 0 where nothing is there to divide by."""
    hits, true, said = np.diagonal(counts), counts.sum(1), counts.sum(0)
    share = lambda part, whole: np.divide(part, whole, out=np.zeros(len(counts)), where=whole > 0)
    return {"precision": share(hits, said), "recall": share(hits, true), "f1": share(2 * hits, true + said)}


def micro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of all decisions together, bool [N, C] (multi-label); 0 where there is none."""
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    if truth.shape != predicted.shape:
        raise UsageError(f"truth {truth.shape} and predictions {predicted.shape}: expected equal shapes")
    total = truth.sum() + predicted.sum()
    return float(2 * (truth & predicted).sum() / total) if total else 0.0


def calibration(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> Calibration:
    """Bins of confidence in [0, 1], their upper edges inclusive."""
    sure, right = _same(confidence, right)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    used = [place == i for i in range(bins) if (place == i).any()]
    return Calibration(
        tuple(float(sure[each].mean()) for each in used),
        tuple(float(right[each].mean()) for each in used),
        tuple(int(each.sum()) for each in used),
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(np.asarray(scores, np.float64) - np.max(scores, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _same(a: Sequence, b: Sequence) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise UsageError(f"{a.shape} true and {b.shape} predicted values: expected as many of both, one at least")
    return a, b
