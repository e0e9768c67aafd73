"""Beam search: several answers grow side by side, and the most likely whole one is given (`transformers` `generate`
with `num_beams`, whose order of penalties and rules for ending are kept)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.core.sequence import Batch
from alm_jax.infer.sampling import Sampling, penalise, seen_in
from alm_jax.models.alm import AudioLanguageModel
from alm_jax.models.cache import KVCache, cache_slots

_NEVER = -1e9  # score of a beam that repeats another at the start
_NO_ID = np.iinfo(np.int32).max  # past any vocabulary


def search(
    model: AudioLanguageModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    eos_ids: tuple[int, ...] = (),
    dtype: jnp.dtype = jnp.float32,
) -> list[list[int]]:
    """New ids of the best answer of every row, without EOS; options as in `infer.generate.steps`.

    Each step scores all continuations of a row's beams by log-likelihood, of which the repetition penalty and
    forbidden n-grams change that of the new id alone. Those that end in EOS are put aside; the best others go on. A row
    is done when no beam can become better than the worst of `beams` answers put aside.
    """
    rows, beams = batch.shape[0], sampling.beams
    scores = np.full((rows, beams), _NEVER, np.float32)
    scores[:, 0] = 0.0
    ids = np.full((rows, beams, max_new_tokens), _NO_ID, np.int32)
    ends = [_Ended(sampling) for _ in range(rows)]
    keep = max(2, 1 + len(eos_ids)) * beams
    positions = np.repeat(np.asarray(batch.positions)[:, -1], beams)
    slots = cache_slots(batch.shape[1] + max_new_tokens)
    found, cache, seen = _prefill(model, batch, scores, ids, slots=slots, keep=keep, sampling=sampling, dtype=dtype)
    for length in range(1, max_new_tokens + 1):
        origins = np.tile(np.arange(beams), (rows, 1))
        for row, end in enumerate(ends):
            if not end.done:
                candidates = zip(*(np.asarray(part)[row].tolist() for part in found))
                chosen = end.sort(candidates, ids[row], length, eos_ids)
                scores[row], origins[row], tokens = map(np.array, zip(*chosen))
                ids[row] = ids[row, origins[row]]
                ids[row, :, length - 1] = tokens
        if length == max_new_tokens or all(end.done for end in ends):
            break
        found, cache = _step(
            model,
            cache,
            (origins + np.arange(rows)[:, None] * beams).reshape(-1),
            positions + length,
            batch.shape[1] + length - 1,
            scores,
            ids,
            seen,
            length,
            keep=keep,
            sampling=sampling,
            dtype=dtype,
        )
    return [end.best(scores[row], ids[row, :, :length]) for row, end in enumerate(ends)]


class _Ended:
    """The best answers of one row that have ended: (score, ids), at most as many as there are beams."""

    def __init__(self, sampling: Sampling):
        self.beams, self.length_penalty = sampling.beams, sampling.length_penalty
        self.answers: list[tuple[float, list[int]]] = []
        self.done = False

    def sort(self, candidates, ids: np.ndarray, length: int, eos_ids: Sequence[int]) -> list[tuple[float, int, int]]:
        """Put aside what ends, and return (score, beam, id) of what goes on.

        Args:
            candidates: (score, beam, id), the best first. ids: int [beams, T] before them. length: with them.
        """
        going, candidates = [], list(candidates)
        for rank, (score, beam, token) in enumerate(candidates):
            if token in eos_ids:
                if rank < self.beams:
                    self.add(score, length, ids[beam, : length - 1])
            elif len(going) < self.beams:
                going.append((score, beam, token))
        best = self.score(candidates[0][0], length)
        self.done = len(self.answers) == self.beams and self.answers[-1][0] >= best
        return going

    def score(self, total: float, length: int) -> float:
        """A log-likelihood, made comparable between answers of different lengths."""
        return total / length**self.length_penalty

    def add(self, total: float, length: int, ids: np.ndarray) -> None:
        self.answers.append((self.score(total, length), ids.tolist()))
        self.answers.sort(key=lambda answer: -answer[0])
        del self.answers[self.beams :]

    def best(self, scores: np.ndarray, ids: np.ndarray) -> list[int]:
        """Ids of the best answer, where those of beams that never ended count too."""
        if not self.done:
            for total, beam in zip(scores.tolist(), ids):
                self.add(total, len(beam), beam)
        return self.answers[0][1]


@partial(jax.jit, static_argnames=("slots", "keep", "sampling", "dtype"))
def _prefill(model, batch, scores, ids, *, slots, keep, sampling, dtype):
    """(the best continuations, cache, ids that the penalty sees) of prompts, in as many copies as there are beams."""
    hidden, cache = model.prefill(batch, slots, dtype)
    logits = model.logits(hidden[:, -1])
    seen = seen_in(batch, logits.shape[-1])
    found = _continuations(jnp.repeat(logits, sampling.beams, axis=0), scores, ids, seen, 0, keep, sampling)
    return found, cache.repeat(sampling.beams), seen


@partial(jax.jit, static_argnames=("keep", "sampling", "dtype"), donate_argnames="cache")
def _step(model, cache: KVCache, origins, positions, index, scores, ids, seen, count, *, keep, sampling, dtype):
    """(the best continuations, cache): beams of all rows, R in all, each after the beam that it continues.

    Args:
        origins: int [R]. positions: int [R] of the newest ids. index: the slot of those. count: new ids so far.
    """
    tokens = jax.lax.dynamic_index_in_dim(ids, count - 1, axis=2, keepdims=False).reshape(-1, 1)
    hidden, cache = model.decode(tokens, positions[:, None], cache.take(origins), index, dtype)
    return _continuations(model.logits(hidden[:, -1]), scores, ids, seen, count, keep, sampling), cache


def _continuations(logits, scores, ids, seen, count, keep: int, sampling: Sampling):
    """The `keep` best of each row: (scores, beams, ids), each [B, keep], the best first.

    Args:
        logits: [R, V]. scores: [B, beams]. ids: int [B, beams, T], `count` of them so far. seen: bool [B, V].
    """
    rows, beams, _ = ids.shape
    new = jax.nn.log_softmax(logits).reshape(rows, beams, -1)
    place = jnp.arange(rows)[:, None, None], jnp.arange(beams)[:, None]
    seen = jnp.repeat(seen[:, None], beams, axis=1).at[(*place, ids)].set(True, mode="drop")
    new = penalise(new, seen, sampling.repetition_penalty)
    if sampling.no_repeat_ngram:
        new = new.at[(*place, _repeating(ids, count, sampling.no_repeat_ngram))].set(-jnp.inf, mode="drop")
    best, index = jax.lax.top_k((new + scores[..., None]).reshape(rows, -1), keep)
    return best, index // new.shape[-1], index % new.shape[-1]


def _repeating(ids: jax.Array, count, size: int) -> jax.Array:
    """Ids [..., T - size + 1] that would repeat `size` ids of the first `count` of [..., T]; else `_NO_ID`."""
    windows = max(0, ids.shape[-1] - size + 1)
    same = jnp.arange(windows) + size - 1 < count
    for k in range(size - 1):
        last = jax.lax.dynamic_slice_in_dim(ids, count - size + 1 + k, 1, axis=-1)
        same &= ids[..., k : k + windows] == last
    return jnp.where(same, ids[..., size - 1 :], _NO_ID)
