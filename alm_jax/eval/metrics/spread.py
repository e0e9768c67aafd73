"""How far a score could be otherwise: correlation, ratios, and intervals of means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DEVIATIONS = 1.96  # of a normal distribution, for 95 %


@dataclass(frozen=True)
class Counted:
    """How well one class of sounds is counted (LTU, table 13).

    Attributes:
        pearson: between what is said and what is true; NaN where either never changes.
        ratio: mean count said of clips that hold the sound twice over that of clips with it once; NaN without both.
        exact: share of right counts. error: mean distance. clips: with a count.
    """

    pearson: float
    ratio: float
    exact: float
    error: float
    clips: int


def counted(true: Sequence[float], said: Sequence[float]) -> Counted:
    """Scores of counts; `said` holds NaN for answers without a number, which are left out."""
    true, said = np.asarray(true, float), np.asarray(said, float)
    told = ~np.isnan(said)
    true, said = true[told], said[told]
    if not len(said):
        return Counted(*[math.nan] * 4, 0)
    once, twice = said[true == 1], said[true == 2]
    ratio = float(twice.mean() / once.mean()) if len(once) and len(twice) and once.mean() else math.nan
    return Counted(
        pearson(true, said), ratio, float((true == said).mean()), float(np.abs(true - said).mean()), len(said)
    )


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation; NaN where either never changes."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() and b.std() else math.nan


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval), as few-shot episodes are published: 1.96 s / sqrt(n)."""
    values = np.asarray(values, float)
    if not len(values):
        return math.nan, math.nan
    half = DEVIATIONS * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(half)


def by_group(groups: Sequence[str], values: Sequence[float]) -> Mapping[str, np.ndarray]:
    """Values of each group, in the alphabet's order."""
    found: dict[str, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        found.setdefault(group, []).append(value)
    return {group: np.array(found[group]) for group in sorted(found)}
