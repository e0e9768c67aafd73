"""What is drawn at random: the same for the same seed and names, whatever else is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers of a seed and names."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    """One of the items."""
    return items[int(rng.integers(len(items)))]


def sample(items: Sequence[Item], count: int, rng: np.random.Generator) -> list[Item]:
    """Some of the items, none twice, in a random order."""
    return [items[i] for i in rng.permutation(len(items))[:count]]
