"""Santa: a clip's embedding is drawn towards those of texts like it, for a decoder that was trained on texts alone
(MATS, Wang et al. 2025, section 3.4; official `encode_audio` and `load_memory`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.core.errors import ConfigError
from alm_jax.models.aligners.mapper import add_noise
from alm_jax.models.contrast import unit


@dataclass(frozen=True)
class SantaConfig:
    """How it is done; the defaults are those of the published code, `PAPER` differs where the paper does.

    Attributes:
        memory: embeddings that are kept (about 0.1% of the training texts).
        clusters, iterations: of k-means; no clusters: all of the memory is searched.
        neighbours: texts that are drawn upon.
        share: of them in the result; 1 leaves nothing of the clip's own embedding.
        temperature: multiplies similarities before the softmax (the paper's tau is its inverse).
        noise_variance: of the noise on each number of a text's embedding. noise_on: whether it is added once, to the
            memory (the paper), or to the neighbours (the code).
        normalise: whether the clip's embedding has length 1 in all of it; else it goes in as CLAP gives it, so that the
            texts' share is smaller than it says.
        seed: of the noise, of where k-means begins, and of which embeddings are kept.
    """

    memory: int = 5172
    clusters: int = 100
    iterations: int = 10
    neighbours: int = 32
    share: float = 0.3
    temperature: float = 10.0
    noise_variance: float = 0.015
    noise_on: Literal["neighbours", "memory"] = "neighbours"
    normalise: bool = False
    seed: int = 0

    def __post_init__(self):
        expected = {
            "memory": ("at least 1", self.memory >= 1),
            "clusters": ("0 or more", self.clusters >= 0),
            "iterations": ("0 or more", self.iterations >= 0),
            "neighbours": ("at least 1", self.neighbours >= 1),
            "share": ("from 0 to 1", 0 <= self.share <= 1),
            "temperature": ("above 0", self.temperature > 0),
            "noise_variance": ("0 or more", self.noise_variance >= 0),
            "seed": ("0 or more", self.seed >= 0),
        }
        for name, (wanted, right) in expected.items():
            if not right:
                raise ConfigError(f"santa.{name} is {getattr(self, name)!r}; expected {wanted}")


PAPER = SantaConfig(noise_on="memory", normalise=True)


@jax.tree_util.register_dataclass
@dataclass
class Memory:
    """Embeddings of texts in clusters.

    Attributes:
        bank: [M, dim], of length 1. means: [K, dim]. assigned: int [M], the cluster of each.
    """

    bank: jax.Array
    means: jax.Array
    assigned: jax.Array


class Retrieved(NamedTuple):
    """What Santa makes of clips, and of what: `embeddings` [B, dim]; `cluster` int [B]; `distances` [B, L] to the
    neighbours [B, L, dim]; `similarities` and `weights` [B, L] of those after noise."""

    embeddings: jax.Array
    cluster: jax.Array
    distances: jax.Array
    neighbours: jax.Array
    similarities: jax.Array
    weights: jax.Array


def cluster(bank: jax.Array, first: jax.Array, iterations: int) -> Memory:
    """k-means by Lloyd's iterations, squared Euclidean; a cluster that becomes empty keeps its mean.

    Args:
        bank: [M, dim]; scaled to length 1. first: int [K], rows that the means start from.
    """
    bank = unit(bank)

    def move(_, means):
        own = jax.nn.one_hot(_nearest(bank, means), len(first), dtype=bank.dtype)  # [M, K]
        count = own.sum(0)[:, None]
        return jnp.where(count > 0, own.T @ bank / jnp.maximum(count, 1), means)

    means = jax.lax.fori_loop(0, iterations, move, bank[first])
    return Memory(bank, means, _nearest(bank, means))


def build_memory(bank: jax.Array, config: SantaConfig) -> Memory:
    """The memory of text embeddings [N, dim], of which `config.memory` are drawn if there are more.

    Raises:
        ConfigError: there are none, or fewer than clusters.
    """
    draw, start, noise = jax.random.split(jax.random.key(config.seed), 3)
    if len(bank) > config.memory:
        bank = jax.random.choice(draw, bank, (config.memory,), replace=False)
    if not len(bank):
        raise ConfigError("the memory is empty: build it from some texts")
    if config.clusters > len(bank):
        raise ConfigError(
            f"santa.clusters is {config.clusters} and the memory holds {len(bank)} texts: build it from more, or lower "
            "santa.clusters (0: no clusters)"
        )
    if config.noise_on == "memory" and config.noise_variance:
        bank = add_noise(bank, jax.random.normal(noise, bank.shape), config.noise_variance)
    clusters = max(1, config.clusters)
    return cluster(bank, jax.random.choice(start, len(bank), (clusters,), replace=False), config.iterations)


def santa(z: jax.Array, memory: Memory, config: SantaConfig) -> jax.Array:
    """Embeddings [B, dim] of clips, each drawn towards the texts that are like it; float32.

    The noise is the same for every clip and every time, so that an answer depends on nothing but its clip.
    """
    noise = jax.random.normal(jax.random.key(config.seed), (config.neighbours, z.shape[-1]))
    return retrieve(z.astype(jnp.float32), memory, config, noise).embeddings


def retrieve(z: jax.Array, memory: Memory, config: SantaConfig, noise: jax.Array) -> Retrieved:
    """Draw embeddings of clips towards those of texts (official `encode_audio`; equations 6 and 7).

    The neighbours are the nearest in the nearest cluster that has any; one that has too few gives its first in place of
    those that are missing. Without clusters there are no more of them than texts, each once.

    Args:
        z: [B, dim]. noise: N(0, 1) [B, neighbours, dim] or [neighbours, dim], for the neighbours.
    """
    z = unit(z) if config.normalise else z
    sizes = jnp.zeros(len(memory.means), int).at[memory.assigned].add(1)
    nearest = jnp.where(sizes > 0, _distances(z, memory.means), jnp.inf).argmin(-1)
    inside = memory.assigned == nearest[:, None]  # [B, M]
    distances = jnp.where(inside, _distances(z, memory.bank), jnp.inf)
    most = min(config.neighbours, len(memory.bank))
    found, rows = jax.lax.top_k(-distances, most)
    count = config.neighbours if config.clusters else most
    missing = ((0, 0), (0, count - most))
    found, rows = jnp.pad(found, missing, constant_values=-jnp.inf), jnp.pad(rows, missing)
    rows = jnp.where(jnp.isfinite(found), rows, inside.argmax(-1)[:, None])
    distances = jnp.take_along_axis(distances, rows, axis=-1)
    neighbours = memory.bank[rows]
    noisy = config.noise_on == "neighbours" and config.noise_variance
    texts = add_noise(neighbours, noise[..., :count, :], config.noise_variance) if noisy else neighbours
    similarities = config.temperature * jnp.einsum("bd,bld->bl", z, texts)
    weights = jax.nn.softmax(similarities, axis=-1)
    blended = (1 - config.share) * z + config.share * jnp.einsum("bl,bld->bd", weights, texts)
    return Retrieved(blended, nearest, distances, neighbours, similarities, weights)


def noise_variance(audio: np.ndarray, text: np.ndarray) -> float:
    """The variance of the noise that covers the gap between clips and their texts (section 3.2).

    The standard deviation is the largest difference of a pair's numbers (its infinity norm), embeddings having length
    1, averaged over the pairs. The paper names the norm and not what it is of the noise; with the norm as the variance
    itself its 0.015 would be out of reach. Both follow CapDec (Nukrai et al. 2022).

    Args:
        audio, text: [N, dim], pairs; the paper takes 30.
    """
    gap = np.asarray(unit(jnp.asarray(audio, jnp.float32)) - unit(jnp.asarray(text, jnp.float32)))
    return float(np.square(np.abs(gap).max(-1).mean()))


def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean, [B, d] and [N, d] -> [B, N]."""
    return jnp.sqrt(jnp.maximum(((x[:, None] - y) ** 2).sum(-1), 0.0))


def _nearest(x: jax.Array, means: jax.Array) -> jax.Array:
    return ((means**2).sum(-1) - 2 * x @ means.T).argmin(-1)
