"""Answers of a model to many rows, in the order of the rows; every clip is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.data.rows import AudioRow, RowSet
from alm_jax.infer.loaded import LoadedModel
from alm_jax.infer.sampling import Sampling


def encode_clips(model: LoadedModel, clips: Sequence[Path], *, batch_size: int = 8) -> dict[Path, jax.Array]:
    """`{path: features [1, K, T, D]}` of each distinct clip."""
    unique = list(dict.fromkeys(clips))
    features = {}
    for start in range(0, len(unique), batch_size):
        part = unique[start : start + batch_size]
        # A full batch always, so that the encoder is compiled once.
        encoded = model.encode([*part, *part[-1:] * (batch_size - len(part))])
        features |= dict(zip(part, encoded))
    return features


def answer_rows(
    model: LoadedModel,
    rows: Sequence[AudioRow],
    features: Sequence[Sequence[jax.Array]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    sampling: Sampling = Sampling(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """The answer to each row's instruction and input.

    Args:
        features: of each row's clips (`features_of`), in their order; empty for none.
        progress: called with (done, all).
    """
    answers = [""] * len(rows)
    sizes = [(len(heard), len(row.instruction)) for row, heard in zip(rows, features, strict=True)]
    for part, full in alike(sizes, batch_size, progress):
        texts = model.answer(
            [rows[i].instruction for i in full],
            [features[i] for i in full],
            input=[rows[i].input for i in full],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )
        for i, text in zip(part, texts):
            answers[i] = text
    return answers


def alike(
    sizes: Sequence[Any], batch_size: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[list[int], list[int]]]:
    """Batches of rows of like size, so that little is spent on padding: their numbers, and these filled up with the
    last to `batch_size`, so that one shape is compiled. `progress` is called with (done, all) after each."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, part + part[-1:] * (batch_size - len(part))
        progress(start + len(part), len(order))


def features_of(model: LoadedModel, rows: RowSet, chosen: Sequence[int]) -> list[list[jax.Array]]:
    """Features of the clips of some rows, a list for each row."""
    paths = [[rows.clip_path(clip) for clip in rows[i].clips] for i in chosen]
    encoded = encode_clips(model, [path for each in paths for path in each])
    return [[encoded[path] for path in each] for each in paths]


def mean(values: Sequence[float]) -> float:
    """Mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
