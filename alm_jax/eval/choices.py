"""Questions with a closed set of answers: the answer that a model holds most likely, and how sure an accuracy is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import jax

from alm_jax.data.rows import AudioRow
from alm_jax.eval.answers import alike
from alm_jax.infer.loaded import LoadedModel


@dataclass(frozen=True)
class Accuracy:
    """How many of some questions were answered right.

    Attributes:
        right, of: how many of how many.
        chance: expected share of answers drawn evenly from each question's choices.
    """

    right: int
    of: int
    chance: float

    @property
    def share(self) -> float:
        """In [0, 1]; NaN of no questions."""
        return self.right / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share would lie over endless such questions, with 95 % confidence."""
        return wilson(self.right, self.of)


def choose(
    model: LoadedModel,
    rows: Sequence[AudioRow],
    features: Sequence[Sequence[jax.Array]],
    choices: Sequence[Sequence[str]],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Of each row's choices the one of the highest mean log-likelihood a token (`infer.rank`).

    Args:
        features: of each row's clips (`eval.answers.features_of`), in their order.
        progress: called with (done, all).
    """
    chosen = [""] * len(rows)
    sizes = [(len(features[i]), len(choices[i]), len(row.instruction)) for i, row in enumerate(rows)]
    for part, full in alike(sizes, batch_size, progress):
        ranked = model.likelihoods(
            [rows[i].instruction for i in full],
            [features[i] for i in full],
            [choices[i] for i in full],
            input=[rows[i].input for i in full],
        )
        for i, likelihoods in zip(part, ranked):
            chosen[i] = next(iter(likelihoods))
    return chosen


def accuracy(rows: Sequence[AudioRow], chosen: Sequence[str], choices: Sequence[Sequence[str]]) -> Accuracy:
    """How often the chosen answer is the row's own."""
    right = sum(row.output == answer for row, answer in zip(rows, chosen, strict=True))
    chance = sum(1 / len(given) for given in choices) / len(rows) if rows else math.nan
    return Accuracy(right, len(rows), chance)


def usual(rows: Iterable[AudioRow], key: Callable[[AudioRow], Hashable] = lambda row: None) -> dict[Hashable, str]:
    """The most frequent answer of rows that share a key; of equally frequent ones the first in the alphabet."""
    counts: dict[Hashable, Counter[str]] = {}
    for row in rows:
        counts.setdefault(key(row), Counter())[row.output] += 1
    return {name: min(count, key=lambda answer: (-count[answer], answer)) for name, count in counts.items()}


def wilson(right: int, of: int, deviations: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a binomial share; (0, 1) of no trials."""
    if not of:
        return 0.0, 1.0
    share, square = right / of, deviations**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    reach = deviations / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)
