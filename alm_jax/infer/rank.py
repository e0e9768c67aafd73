"""Which of some given answers a model holds most likely (official `predict_class` of LAVIS and APT)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.core.sequence import Batch
from alm_jax.models.alm import AudioLanguageModel
from alm_jax.models.cache import KVCache, cache_slots

_BUCKET = 8  # lengths of answers are rounded up to it, so that few steps are ever compiled


class Likelihoods(NamedTuple):
    """Of each row's candidates.

    Attributes:
        total: float32 [B, C] log-likelihood of all tokens, -inf where a row has fewer candidates. tokens: int [B, C].
    """

    total: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Log-likelihood a token [B, C]: what candidates of different lengths are compared by."""
        return self.total / np.maximum(self.tokens, 1)

    def best(self) -> np.ndarray:
        """int [B]: the candidate of the highest mean log-likelihood."""
        return self.mean.argmax(-1)


def rank(
    model: AudioLanguageModel,
    batch: Batch,
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    at_once: int = 16,
    dtype: jnp.dtype = jnp.float32,
) -> Likelihoods:
    """How likely each candidate follows its prompt; the prompts are read once.

    The published code divides by the length of the whole padded row, which ranks the candidates of a row by `total`;
    the paper means `mean`.

    Args:
        batch: prompts padded left (`collate(..., pad="left")`).
        candidates: ids of each candidate of each row, as they follow the prompt (EOS only if it is to count).
        at_once: candidates of a row that are read side by side; so many copies of the prompts' cache are held.

    Raises:
        UsageError: a row has no candidates, or one has no tokens.
    """
    most = max(map(len, candidates), default=0)
    lengths = np.zeros((len(candidates), most), np.int32)
    for row, given in enumerate(candidates):
        lengths[row, : len(given)] = [len(ids) for ids in given]
        if not len(given) or not lengths[row, : len(given)].all():
            raise UsageError(f"row {row} has a candidate without tokens, or no candidates: give each answer some text")
    longest = -(-int(lengths.max()) // _BUCKET) * _BUCKET
    ids = np.zeros((*lengths.shape, longest), np.int32)
    for row, given in enumerate(candidates):
        for column, tokens in enumerate(given):
            ids[row, column, : len(tokens)] = tokens
    first, cache = _prefill(model, batch, slots=cache_slots(batch.shape[1] + longest), dtype=dtype)
    ends = np.asarray(batch.positions)[:, -1]
    totals = [
        _score(
            model, first, cache, ends, ids[:, at : at + at_once], lengths[:, at : at + at_once], batch.shape[1], dtype
        )
        for at in range(0, most, at_once)
    ]
    total = np.concatenate([np.asarray(part) for part in totals], axis=1)
    return Likelihoods(np.where(lengths > 0, total, -np.inf), lengths)


@partial(jax.jit, static_argnames=("slots", "dtype"))
def _prefill(model: AudioLanguageModel, batch: Batch, *, slots: int, dtype) -> tuple[jax.Array, KVCache]:
    """Log-probabilities [B, V] of the first token after each prompt, and the prompts' cache."""
    hidden, cache = model.prefill(batch, slots, dtype)
    return jax.nn.log_softmax(model.logits(hidden[:, -1])), cache


@partial(jax.jit, static_argnames=("dtype",))
def _score(model, first, cache: KVCache, ends, ids, lengths, index, dtype) -> jax.Array:
    """Log-likelihoods float32 [B, C] of candidates int [B, C, T], of which `lengths` [B, C] tokens count.

    Args:
        first: log-probabilities [B, V] of the first tokens. ends: int [B] position of each prompt's last token.
        index: the slot after the prompts'.
    """
    rows, count, length = ids.shape
    flat = ids.reshape(rows * count, length)
    positions = jnp.repeat(ends, count)[:, None] + 1 + jnp.arange(length - 1)
    hidden, _ = model.decode(flat[:, :-1], positions, cache.repeat(count), index, dtype)
    logits = model.logits(hidden)
    said = jnp.take_along_axis(logits, flat[:, 1:, None], axis=-1)[..., 0]
    # not log_softmax, which would write as much again as the logits are
    steps = (said - jax.nn.logsumexp(logits, axis=-1)).reshape(rows, count, length - 1)
    begin = jnp.take_along_axis(first, ids[:, :, 0], axis=-1)
    return begin + jnp.where(jnp.arange(1, length) < lengths[..., None], steps, 0.0).sum(-1)
