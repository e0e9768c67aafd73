"""Retrieval between clips and texts, both ways, and embeddings of classes, in the space of a CLAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alm_jax.core.errors import UsageError

RANKS = (1, 5, 10)
_PRECISION_AT = 10
PROMPTS = ("This is a sound of {}.",)
"""MS-CLAP's prompt for classes."""


@dataclass(frozen=True)
class Retrieval:
    """Scores of one way.

    Attributes:
        recall: by k, the share of queries with something relevant among the first k.
        map10: mean over queries of the average precision of the first 10: the mean, over as many as could be found
            there, of the precision at each relevant one.
        queries: how many.
    """

    recall: Mapping[int, float]
    map10: float
    queries: int


@dataclass(frozen=True)
class BothWays:
    """Texts found for clips, and clips found for texts."""

    audio_to_text: Retrieval
    text_to_audio: Retrieval


class Embeds(Protocol):
    """What embeds texts (`infer.clap.LoadedClap`)."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray: ...


def retrieve(scores: np.ndarray, relevant: np.ndarray) -> Retrieval:
    """Recall and precision of ranking by score.

    Args:
        scores: [queries, items]. relevant: bool of the same shape; each query has one at least. Of items with equal
            scores those that are not relevant come first, so that a constant finds nothing.

    Raises:
        UsageError: shapes differ, there is no query, or one with nothing relevant.
    """
    scores, relevant = np.asarray(scores), np.asarray(relevant, bool)
    if scores.shape != relevant.shape or scores.ndim != 2 or not scores.size:
        raise UsageError(
            f"scores of shape {scores.shape}, relevant of {relevant.shape}: expected [queries, items] both"
        )
    if empty := np.flatnonzero(~relevant.any(1)).tolist():
        raise UsageError(f"query {empty[0]} has no relevant item: leave it out, or say what is relevant")
    order = np.lexsort((relevant, -scores), axis=-1)
    found = np.take_along_axis(relevant, order, axis=-1)
    first = found[:, :_PRECISION_AT]
    precision = np.cumsum(first, 1) / np.arange(1, first.shape[1] + 1)
    average = (precision * first).sum(1) / np.minimum(relevant.sum(1), _PRECISION_AT)
    recall = {k: float(found[:, :k].any(1).mean()) for k in RANKS}
    return Retrieval(recall, float(average.mean()), len(scores))


def audio_text_retrieval(audio: np.ndarray, text: np.ndarray, clip_of: Sequence[int]) -> BothWays:
    """Both ways between clips and their captions, of which a clip may have several.

    Args:
        audio, text: embeddings [A, dim] and [T, dim] of length 1. clip_of: of each text, the number of its clip.

    Raises:
        UsageError: there are not as many numbers as texts, or a clip has no text.
    """
    clips = np.asarray(clip_of, int)
    if clips.shape != (len(text),) or (len(clips) and not 0 <= clips.min() <= clips.max() < len(audio)):
        raise UsageError(f"clip_of names the clips of {clips.size} texts, there are {len(text)}, of {len(audio)} clips")
    scores = np.asarray(audio) @ np.asarray(text).T
    relevant = np.arange(len(audio))[:, None] == clips
    return BothWays(retrieve(scores, relevant), retrieve(scores.T, relevant.T))


def class_embeddings(model: Embeds, labels: Sequence[str], prompts: Sequence[str] = PROMPTS) -> np.ndarray:
    """Embeddings [C, dim] of length 1 of classes: the mean over prompts, in which `{}` stands for the label.

    Raises:
        UsageError: no label, or a prompt without `{}`.
    """
    if not labels or not prompts or any("{}" not in prompt for prompt in prompts):
        raise UsageError("give labels, and prompts with {} in the label's place")
    texts = [prompt.replace("{}", label) for label in labels for prompt in prompts]
    mean = np.asarray(model.embed_text(texts)).reshape(len(labels), len(prompts), -1).mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
