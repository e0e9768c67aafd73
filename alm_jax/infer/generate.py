"""Batched generation: prompts of unequal length, one cache slot for all rows, one compiled decode step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.core.sequence import Batch
from alm_jax.infer import beam
from alm_jax.infer.sampling import Sampling, choose, seen_in
from alm_jax.models.alm import AudioLanguageModel
from alm_jax.models.cache import KVCache, cache_slots


@jax.tree_util.register_dataclass
@dataclass
class DecodeState:
    """What one decode step takes and gives; donated, so that the cache is changed in place.

    Attributes:
        cache: see `KVCache`. index: scalar, the next free slot, the same for all rows.
        tokens: int32 [B] chosen last. positions: int32 [B] their true positions.
        seen: bool [B, V] ids that the repetition penalty applies to. done: bool [B] rows that met EOS.
        keys: [B] random keys, one a row.
    """

    cache: KVCache
    index: jax.Array
    tokens: jax.Array
    positions: jax.Array
    seen: jax.Array
    done: jax.Array
    keys: jax.Array


@partial(jax.jit, static_argnames=("slots", "sampling", "eos_ids", "dtype"))
def _prefill(model: AudioLanguageModel, batch: Batch, keys, *, slots, sampling, eos_ids, dtype):
    hidden, cache = model.prefill(batch, slots, dtype)
    logits = model.logits(hidden[:, -1])
    state = DecodeState(
        cache=cache,
        index=jnp.int32(batch.tokens.shape[1]),
        tokens=batch.tokens[:, -1],
        positions=batch.positions[:, -1],
        seen=seen_in(batch, logits.shape[-1]),
        done=jnp.zeros(batch.tokens.shape[0], bool),
        keys=keys,
    )
    return _advance(state, logits, sampling, eos_ids), logits


@partial(jax.jit, static_argnames=("sampling", "eos_ids", "dtype"), donate_argnames="state")
def _decode(model: AudioLanguageModel, state: DecodeState, *, sampling, eos_ids, dtype):
    hidden, cache = model.decode(state.tokens[:, None], state.positions[:, None], state.cache, state.index, dtype)
    logits = model.logits(hidden[:, -1])
    state = DecodeState(cache, state.index + 1, state.tokens, state.positions, state.seen, state.done, state.keys)
    return _advance(state, logits, sampling, eos_ids), logits


def _advance(state: DecodeState, logits, sampling, eos_ids) -> DecodeState:
    """Choose the next token of every row; finished rows repeat EOS."""
    drawn = jax.vmap(jax.random.fold_in)(state.keys, state.positions)
    tokens = choose(logits, state.seen, sampling, drawn)
    tokens = jnp.where(state.done, eos_ids[0] if eos_ids else 0, tokens)
    ended = jnp.isin(tokens, jnp.array(eos_ids)) if eos_ids else jnp.zeros_like(state.done)
    seen = state.seen.at[jnp.arange(tokens.shape[0]), tokens].set(True)
    return DecodeState(state.cache, state.index, tokens, state.positions + 1, seen, state.done | ended, state.keys)


def steps(
    model: AudioLanguageModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    eos_ids: tuple[int, ...] = (),
    seeds: np.ndarray | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array]]:
    """Generate token by token: yields (ids [B], rows done before this token [B], logits [B, V]).

    Args:
        batch: prompts padded left (`collate(..., pad="left")`), so that every row ends in the last column.
        seeds: int [B], one a row (default 0): a row's answer does not depend on what it is batched with.

    The generator ends when every row is done or `max_new_tokens` are out.

    Raises:
        UsageError: prompt and answer are longer than the decoder's positions.
    """
    rows, length = batch.shape
    _check_length(model, batch, max_new_tokens)
    seeds = np.zeros(rows, np.uint32) if seeds is None else np.asarray(seeds, np.uint32)
    keys = jax.vmap(jax.random.key)(seeds)
    slots = cache_slots(length + max_new_tokens)
    options = {"sampling": sampling, "eos_ids": eos_ids, "dtype": dtype}
    state, logits = _prefill(model, batch, keys, slots=slots, **options)
    done = np.zeros(rows, bool)
    for step in range(max_new_tokens):
        if step:
            state, logits = _decode(model, state, **options)
        yield np.asarray(state.tokens), done, logits
        done = np.asarray(state.done)
        if done.all():
            return


def _check_length(model: AudioLanguageModel, batch: Batch, new: int) -> None:
    """Refuse what the decoder has no positions for; the last new token is chosen and not read."""
    limit, prompt = model.decoder.limit, int(np.asarray(batch.positions).max()) + 1
    if prompt + new - 1 > limit:
        raise UsageError(
            f"a prompt of {prompt} tokens and {new} new ones do not fit the decoder's {limit} positions: ask for at "
            f"most {max(0, limit + 1 - prompt)} new ones, or shorten the prompt"
        )


def generate(
    model: AudioLanguageModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    on_token: Callable[[np.ndarray, np.ndarray], None] | None = None,
    **options,
) -> list[list[int]]:
    """New ids of every row, without EOS. Options as in `steps`; `on_token(ids, done)` is called for streaming.

    With `sampling.beams` the answers are known at the end alone, and streamed then.
    """
    eos_ids = options.get("eos_ids", ())
    if options.get("sampling", Sampling()).beams > 1:
        options.pop("seeds", None)
        _check_length(model, batch, max_new_tokens)
        answers = beam.search(model, batch, max_new_tokens=max_new_tokens, **options)
        for column in range(max(map(len, answers)) if on_token else 0):
            done = np.array([column >= len(answer) for answer in answers])
            on_token(np.array([0 if over else answer[column] for answer, over in zip(answers, done)]), done)
        return answers
    answers: list[list[int]] = [[] for _ in range(batch.shape[0])]
    for ids, done, _ in steps(model, batch, max_new_tokens=max_new_tokens, **options):
        for row, answer in enumerate(answers):
            if not done[row] and ids[row] not in eos_ids:
                answer.append(int(ids[row]))
        if on_token is not None:
            on_token(ids, done)
    return answers
