"""How the next token is chosen from logits, in the order of the published sampler."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Batch


@dataclass(frozen=True)
class Sampling:
    """Repetition penalty, then temperature, then top-k, then top-p, then a draw (`transformers` order; LTU's too).

    Attributes:
        temperature: 0 is greedy decoding (the penalty still applies).
        top_k: keep the k best tokens (ties included); 0 keeps all.
        top_p: keep the smallest set of best tokens whose probability exceeds it; 1 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of ids seen before; 1 changes nothing.
        beams: 1, or how many answers beam search keeps side by side (`infer.beam`); nothing is drawn then.
        length_penalty: of beam search: an answer's log-likelihood is divided by its length to this power.
        no_repeat_ngram: of beam search: so many ids in a row occur once in an answer; 0 allows all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ConfigError(
                f"{self}: expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0"
            )
        if self.beams < 1 or self.no_repeat_ngram < 0:
            raise ConfigError(f"{self}: expected beams >= 1 and no_repeat_ngram >= 0")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(f"{self}: beam search draws nothing; expected temperature 0, or beams 1")
        if self.beams == 1 and (self.length_penalty != 1 or self.no_repeat_ngram):
            raise ConfigError(f"{self}: length_penalty and no_repeat_ngram are of beam search; expected beams > 1")


LTU_SAMPLING = Sampling(temperature=0.1, top_k=500, top_p=0.95, repetition_penalty=1.1)
APT_SAMPLING = Sampling(beams=5, repetition_penalty=1.5)  # not in the paper
MATS_SAMPLING = Sampling(beams=4, repetition_penalty=2.0, no_repeat_ngram=2)


def seen_in(batch: Batch, vocabulary: int) -> jax.Array:
    """bool [B, V]: the ids of prompts that a repetition penalty sees."""
    rows = jnp.arange(batch.tokens.shape[0])[:, None]
    # Ids outside the penalty are sent past the vocabulary, where the scatter drops them.
    ids = jnp.where(batch.penalty_mask, batch.tokens, vocabulary)
    return jnp.zeros((len(batch.tokens), vocabulary), bool).at[rows, ids].set(True, mode="drop")


def penalise(scores: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Scores [B, V] with those of ids that were `seen` (bool [B, V]) made less likely."""
    if penalty == 1:
        return scores
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def warp(logits: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Filtered scores, -inf where a token is ruled out.

    Args:
        logits: float32 [B, V]. seen: bool [B, V], the ids that the penalty applies to.
    """
    scores = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature > 0:
        scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = jax.lax.top_k(scores, sampling.top_k)[0][:, -1:]
        scores = jnp.where(scores < kth, -jnp.inf, scores)
    if sampling.top_p < 1:
        order = jnp.argsort(scores, axis=-1)
        ranked = jnp.take_along_axis(scores, order, axis=-1)
        dropped = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) <= 1 - sampling.top_p
        dropped = dropped.at[:, -1].set(False)
        ranked = jnp.where(dropped, -jnp.inf, ranked)
        scores = jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)
    return scores


def choose(logits: jax.Array, seen: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """Next ids int32 [B]; `keys` [B], one a row, so that a row's draw does not depend on its batch."""
    scores = warp(logits, seen, sampling)
    if sampling.temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
