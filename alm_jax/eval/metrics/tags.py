"""Tags of clips: how well scores of classes (`infer.tagging.TagScorer`) put the clips of each class first."""

from __future__ import annotations

import numpy as np

from alm_jax.core.errors import UsageError


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class: the mean over its clips of the precision among all that score as high.

    Clips of equal scores are found together, as scikit-learn and torchmetrics have it.

    Args:
        scores: [clips, classes]. targets: bool of the same shape, which clip has which tag.

    Returns:
        float64 [classes]; NaN for a class that no clip has.

    Raises:
        UsageError: shapes differ, there is nothing to rank, or scores are not finite.
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, bool)
    if scores.shape != targets.shape or scores.ndim != 2 or not scores.size:
        raise UsageError(f"scores {scores.shape} and targets {targets.shape}: expected [clips, classes] of both")
    if not np.isfinite(scores).all():
        raise UsageError("scores are not finite: a class or an answer has no vector")
    return np.array([_precision(*column) for column in zip(scores.T, targets.T)])


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `average_precision` over the classes that some clip has (AudioSet's mAP).

    Raises:
        UsageError: as `average_precision`; or no clip has any tag.
    """
    found = average_precision(scores, targets)
    if np.isnan(found).all():
        raise UsageError("no clip has any tag: nothing can be found")
    return float(np.nanmean(found))


def _precision(scores: np.ndarray, targets: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of those that score the same
    hits, ranks = np.cumsum(targets[order])[last], np.flatnonzero(last) + 1
    if not hits[-1]:
        return float("nan")
    return float((np.diff(hits, prepend=0) * hits / ranks).sum() / hits[-1])
