"""How the next token is chosen from logits, in the order of the published sampler."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alm_jax.core.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Repetition penalty, then temperature, then top-k, then top-p, then a draw (`transformers` order; LTU's too).

    Attributes:
        temperature: 0 is greedy decoding (the penalty still applies).
        top_k: keep the k best tokens (ties included); 0 keeps all.
        top_p: keep the smallest set of best tokens whose probability exceeds it; 1 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of ids seen before; 1 changes nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ConfigError(
                f"{self}: expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0"
            )


LTU_SAMPLING = Sampling(temperature=0.1, top_k=500, top_p=0.95, repetition_penalty=1.1)


def warp(logits: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Filtered scores, -inf where a token is ruled out.

    Args:
        logits: float32 [B, V]. seen: bool [B, V], the ids that the penalty applies to.
    """
    scores = logits
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
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
