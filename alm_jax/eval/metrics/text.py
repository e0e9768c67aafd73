"""Texts compared by their meaning: answers with names of classes, captions with captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.data.endpoint import Endpoint, embed
from alm_jax.infer.sentences import MINILM, load_sentence_encoder

TextEncoder = Callable[[Sequence[str]], np.ndarray]
"""Vectors float [N, dim] of length 1 of texts."""
PREFIX = "sound of "  # before answers and names of classes (LTU's evaluation)
_SURE, _PENALTY = 0.9, 0.9  # of FENSE
_AT_ONCE = 64  # texts in a request to an endpoint
_KEY_VARIABLE = "OPENAI_API_KEY"


def text_encoder(name: str = MINILM, model: str = "") -> TextEncoder:
    """An encoder of sentences.

    Args:
        name: file, folder or hub name of a BERT or RoBERTa (`infer.sentences`); or the URL of an OpenAI-compatible
            endpoint that embeds texts, its key in OPENAI_API_KEY.
        model: the endpoint's model, such as `text-embedding-ada-002`, which LTU's evaluation asks.

    Raises:
        CheckpointError, UsageError: it cannot be found or read.
    """
    if not name.startswith(("http://", "https://")):
        if model:
            raise UsageError(f"{name} is no endpoint, and takes no model name ({model}): leave it out")
        return load_sentence_encoder(name)
    endpoint = Endpoint(name, model, os.environ.get(_KEY_VARIABLE, ""))

    def encode(texts: Sequence[str]) -> np.ndarray:
        # An endpoint refuses an empty text.
        given = [text if text.strip() else " ." for text in texts]
        parts = [embed(endpoint, given[at : at + _AT_ONCE]) for at in range(0, len(given), _AT_ONCE)]
        vectors = np.array([vector for part in parts for vector in part], np.float64)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    return encode


def class_similarity(
    texts: Sequence[str], classes: Sequence[str], encode: TextEncoder, prefix: str = PREFIX
) -> np.ndarray:
    """Cosines [N, C] of answers and names of classes, lower case and after `prefix` (LTU `eval_*.py`)."""
    prefixed = lambda given: encode([prefix + text.lower() for text in given])
    distinct = list(dict.fromkeys(texts))  # answers come again and again, and an endpoint costs
    vectors = dict(zip(distinct, prefixed(distinct)))
    return np.stack([vectors[text] for text in texts]) @ prefixed(classes).T


def sentence_similarity(texts: Sequence[str], references: Sequence[Sequence[str]], encode: TextEncoder) -> np.ndarray:
    """Mean cosine [N] of each text with its references: FENSE (Zhou et al. 2022) before its penalty."""
    flat = [text for group in references for text in group]
    said, true = encode(list(texts)), encode(flat)
    ends = np.cumsum([len(group) for group in references])
    return np.array([(group @ one).mean() for one, group in zip(said, np.split(true, ends[:-1]))])


def penalised(alike: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """FENSE [N]: `sentence_similarity`, of which a tenth is left where an error of fluency is more likely than 0.9.

    Args:
        errors: probability [N] of an error (`infer.fluency.ErrorDetector`).
    """
    return np.where(np.asarray(errors) > _SURE, 1 - _PENALTY, 1.0) * alike
