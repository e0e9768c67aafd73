"""MATS: an audio-language model trained on text alone (Wang et al. 2025): MS-CLAP, a mapper, LLaMA or GPT-2 with LoRA,
and Santa, which draws a clip's embedding towards those of texts like it.

Its parts, its layout and Santa as the published code has them; where the paper differs it is said beside the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alm_jax.core.sequence import Layout
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.mapper import MapperConfig, add_noise, unit
from alm_jax.models.alm import AlmConfig, DecoderConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig

LORA = Lora(rank=8, alpha=32.0, dropout=0.1, targets=("attn.q", "attn.v"))
GPT2_LORA = replace(LORA, targets=("attn.qkv",))  # of the paper alone; its code was not published

# `[bos]"USER: <Speech>" audio "</Speech> ... ASSISTANT:" answer`: each is tokenized by itself, an answer cut to 150.
LAYOUT = Layout(
    bos="first",
    max_text_tokens=2048,
    loss_on="answer",
    penalize_prompt=False,
    apart=True,
    max_answer_tokens=150,
)

VOCABULARY = 32001  # Vicuna's 32000 ids and `[PAD]`


def mats(
    decoder: DecoderConfig = LlamaConfig(vocab_size=VOCABULARY, lora=LORA),
    encoder: ClapEncoderConfig = ClapEncoderConfig(towers="both"),
    aligner: MapperConfig = MapperConfig(),
) -> AlmConfig:
    """MATS over parts of any size; the defaults are the published 7B model.

    It is trained on texts, which CLAP's text tower reads (`Stage.hears`), and hears clips through the audio tower.
    """
    return AlmConfig(
        frontend=replace(encoder.clap.frontend, num_mels=encoder.clap.audio.mels),
        encoder=encoder,
        aligner=replace(aligner, dim=encoder.dim, out_dim=decoder.dim),
        decoder=decoder,
    )


def mats_gpt2(decoder: Gpt2Config = Gpt2Config(lora=GPT2_LORA)) -> AlmConfig:
    """MATS-GPT2."""
    return mats(decoder)


@dataclass(frozen=True)
class SantaConfig:
    """How a clip's embedding is drawn towards texts (section 3.3).

    Attributes:
        memory: embeddings that are kept (about 0.1% of the training texts).
        clusters, iterations: of k-means; no clusters: all of the memory is searched.
        neighbours: texts that are drawn upon.
        share: of them in the result.
        temperature: multiplies similarities before the softmax (the paper's tau is its inverse).
        noise_variance: of the noise on each neighbour's numbers (the paper adds it once, when the memory is built).
        normalise: whether the clip's embedding has length 1 in all of it (as in the paper); else it goes in as CLAP
            gives it, so that the texts' share is smaller than it says.
    """

    memory: int = 5172
    clusters: int = 100
    iterations: int = 10
    neighbours: int = 32
    share: float = 0.3
    temperature: float = 10.0
    noise_variance: float = 0.015
    normalise: bool = False


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


def build_memory(bank: jax.Array, config: SantaConfig, key: jax.Array) -> Memory:
    """The memory of text embeddings [N, dim], of which `config.memory` are drawn if there are more."""
    draw, start = jax.random.split(key)
    if len(bank) > config.memory:
        bank = jax.random.choice(draw, bank, (config.memory,), replace=False)
    clusters = max(1, config.clusters)
    return cluster(bank, jax.random.choice(start, len(bank), (clusters,), replace=False), config.iterations)


def retrieve(z: jax.Array, memory: Memory, config: SantaConfig, noise: jax.Array) -> Retrieved:
    """Draw embeddings of clips towards those of texts (official `encode_audio`; equations 6 and 7).

    The neighbours are the nearest in the nearest cluster that has any; one that has too few gives its first in place of
    those that are missing.

    Args:
        z: [B, dim]. noise: N(0, 1) [B, neighbours, dim], drawn anew each time.
    """
    z = unit(z) if config.normalise else z
    sizes = jnp.zeros(len(memory.means), int).at[memory.assigned].add(1)
    nearest = jnp.where(sizes > 0, _distances(z, memory.means), jnp.inf).argmin(-1)
    inside = memory.assigned == nearest[:, None]  # [B, M]
    distances = jnp.where(inside, _distances(z, memory.bank), jnp.inf)
    found, rows = jax.lax.top_k(-distances, config.neighbours)
    rows = jnp.where(jnp.isfinite(found), rows, inside.argmax(-1)[:, None])
    distances = jnp.take_along_axis(distances, rows, axis=-1)
    neighbours = memory.bank[rows]
    texts = add_noise(neighbours, noise, config.noise_variance)
    similarities = config.temperature * jnp.einsum("bd,bld->bl", z, texts)
    weights = jax.nn.softmax(similarities, axis=-1)
    blended = (1 - config.share) * z + config.share * jnp.einsum("bl,bld->bd", weights, texts)
    return Retrieved(blended, nearest, distances, neighbours, similarities, weights)


def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean, [B, d] and [N, d] -> [B, N]."""
    return jnp.sqrt(jnp.maximum(((x[:, None] - y) ** 2).sum(-1), 0.0))


def _nearest(x: jax.Array, means: jax.Array) -> jax.Array:
    return ((means**2).sum(-1) - 2 * x @ means.T).argmin(-1)
