"""The Q-Former: learnt queries draw what a text asks for out of encoder features (Li et al. 2023, BLIP-2; Liang et al.
2023, APT, section III-A; official `Qformer.py`, a BERT with cross-attention and feed-forwards of the queries' own)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.attention import Attention
from alm_jax.layers.dense import Dense, dropout
from alm_jax.layers.embed import Embed
from alm_jax.layers.mlp import Mlp
from alm_jax.layers.norm import LayerNorm
from alm_jax.models.contrast import unit
from alm_jax.models.features import AlignerText, Features

Mask = Literal["unimodal", "bidirectional", "causal"]


@dataclass(frozen=True)
class PretrainingConfig:
    """Heads of the stage that aligns audio and text before there is a decoder.

    Attributes:
        dim: width in which queries and text are compared. temperature: at the start; it is learnt, and divides.
    """

    dim: int = 256
    temperature: float = 0.07


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes; the defaults are APT's, over BERT-mini.

    Attributes:
        dim: encoder width; out_dim: decoder width, None without a decoder.
        steps: encoder steps a slot (any number is read).
        queries: tokens a slot becomes.
        hidden, depth, heads, mlp_dim, norm_eps: of the transformer.
        cross_every: blocks 0, n, 2n, ... read the features. feature_norm_eps: of the norm before them.
        reads_text: whether there is a text beside the queries; BLIP-2's Q-Former has none, InstructBLIP's and APT's do.
        vocab_size, positions: of the text; BERT's vocabulary and `[DEC]`, which opens a text to be generated.
        dropout: on embeddings and on what each sublayer adds (official BERT drops attention weights as well).
        pretraining: heads of the alignment stage, or None.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    dim: int = 768
    out_dim: int | None = 4096
    steps: int = 512
    queries: int = 32
    hidden: int = 256
    depth: int = 4
    heads: int = 4
    mlp_dim: int = 1024
    cross_every: int = 2
    feature_norm_eps: float = 1e-5
    reads_text: bool = True
    vocab_size: int = 30523
    positions: int = 512
    norm_eps: float = 1e-12
    dropout: float = 0.1
    pretraining: PretrainingConfig | None = None
    remat: stack.Remat = "none"

    @property
    def tokens(self) -> int:
        """Audio tokens a slot."""
        return self.queries

    @property
    def begin_id(self) -> int:
        """`[DEC]`, which was added to BERT's vocabulary."""
        return self.vocab_size - 1

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(K, T, D) of one slot's encoder features."""
        return 1, self.steps, self.dim


class QFormerBlock(nnx.Module):
    """A post-norm BERT layer over queries and text together, with a feed-forward for each."""

    def __init__(self, c: QFormerConfig, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.attn = Attention(c.hidden, c.heads, keys[0])
        self.attn_norm = LayerNorm(c.hidden, c.norm_eps)
        self.mlp = Mlp(c.hidden, c.mlp_dim, keys[1]) if c.reads_text else None
        self.mlp_norm = LayerNorm(c.hidden, c.norm_eps) if c.reads_text else None
        self.query_mlp, self.query_mlp_norm = Mlp(c.hidden, c.mlp_dim, keys[2]), LayerNorm(c.hidden, c.norm_eps)
        self.rate = c.dropout

    def __call__(self, queries, text, cross: QFormerCross | None, audio, mask: dict[str, Any], key=None):
        """[B, Q, hidden], [B, L, hidden] -> the same; `cross` reads the features audio [B, T, dim]."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        x = jnp.concatenate([queries, text], axis=1)
        x = self.attn_norm(x + dropout(self.attn(x, **mask), self.rate, keys[0]))
        queries, text = x[:, : queries.shape[1]], x[:, queries.shape[1] :]
        if cross is not None:
            queries = cross(queries, audio, keys[1])
        queries = self.query_mlp_norm(queries + dropout(self.query_mlp(queries), self.rate, keys[2]))
        if self.mlp is not None:
            text = self.mlp_norm(text + dropout(self.mlp(text), self.rate, keys[3]))
        return queries, text


class QFormerCross(nnx.Module):
    """The queries' attention over encoder features, post-norm."""

    def __init__(self, c: QFormerConfig, key: jax.Array):
        self.attn = Attention(c.hidden, c.heads, key, context_dim=c.dim)
        self.norm = LayerNorm(c.hidden, c.norm_eps)
        self.rate = c.dropout

    def __call__(self, queries, audio, key=None):
        return self.norm(queries + dropout(self.attn(queries, audio), self.rate, key))


class PretrainingHeads(nnx.Module):
    """What the alignment stage reads from the Q-Former's outputs; its losses are those of `models.apt`."""

    def __init__(self, c: QFormerConfig, key: jax.Array):
        keys, dim = jax.random.split(key, 4), c.pretraining.dim
        self.audio_proj = Dense(c.hidden, dim, keys[0], axes=(ax.EMBED, None))
        self.text_proj = Dense(c.hidden, dim, keys[1], axes=(ax.EMBED, None))
        self.match = Dense(c.hidden, 2, keys[2], axes=(ax.EMBED, None))
        self.transform = Dense(c.hidden, c.hidden, keys[3], axes=(ax.EMBED, None))
        self.norm = LayerNorm(c.hidden, c.norm_eps)
        self.word_bias = init.zeros((c.vocab_size,), (ax.VOCAB,))
        self.temperature = nnx.Param(jnp.float32(c.pretraining.temperature), axes=())

    def compared(self, queries: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs [B, Q, hidden], [B, L, hidden] -> unit vectors of the queries [B, Q, E] and of each text [B, E]."""
        return unit(self.audio_proj(queries)), unit(self.text_proj(text[:, 0]))

    def words(self, text: jax.Array, embed: Embed) -> jax.Array:
        """Text outputs [B, L, hidden] -> float32 logits [B, L, vocab] over the words of `embed` (BERT's head)."""
        x = self.norm(jax.nn.gelu(self.transform(text), approximate=False))
        return embed.attend(x) + self.word_bias[...]


class QFormer(nnx.Module):
    """Encoder features [1, B, T, dim] and a text -> [B, queries, out_dim]."""

    def __init__(self, config: QFormerConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 7)
        self.audio_norm = LayerNorm(c.dim, c.feature_norm_eps)
        self.queries = init.normal(keys[0], (c.queries, c.hidden), (ax.POSITION, ax.EMBED))
        self.embed = Embed(c.vocab_size, c.hidden, keys[1]) if c.reads_text else None
        self.pos_embed = (
            init.normal(keys[2], (c.positions, c.hidden), (ax.POSITION, ax.EMBED)) if c.reads_text else None
        )
        self.norm = LayerNorm(c.hidden, c.norm_eps)
        self.blocks = stack.build(lambda k: QFormerBlock(c, k), keys[3], c.depth)
        self.cross = stack.build(lambda k: QFormerCross(c, k), keys[4], -(-c.depth // c.cross_every))
        self.proj = None if c.out_dim is None else Dense(c.hidden, c.out_dim, keys[5], axes=(ax.FEATURES, ax.EMBED))
        self.heads = None if c.pretraining is None else PretrainingHeads(c, keys[6])
        self.config = config

    def normalise(self, features: Features) -> jax.Array:
        """What the queries read: [1, B, T, dim] -> [B, T, dim]."""
        return self.audio_norm(features.values[0])

    def embeddings(self, audio: jax.Array, text: AlignerText, key: jax.Array | None = None):
        """Inputs of block 0: queries [B, Q, hidden], which have no positions, and text [B, L, hidden]."""
        c, dtype = self.config, audio.dtype
        x = jnp.broadcast_to(self.queries[...].astype(dtype), (audio.shape[0], c.queries, c.hidden))
        if c.reads_text:
            words = self.embed(text.tokens, dtype) + self.pos_embed[...][: text.tokens.shape[1]].astype(dtype)
            x = jnp.concatenate([x, words], axis=1)
        x = dropout(self.norm(x), c.dropout, key)
        return x[:, : c.queries], x[:, c.queries :]

    def mask(self, text: AlignerText, mask: Mask) -> dict[str, Any]:
        """Who sees whom among queries and text, as `kernels.attention.attention` takes it.

        `unimodal`: queries see queries, text sees text. `bidirectional`: all see all. `causal`: queries see queries,
        text sees queries and the text before it. Nobody sees padding.
        """
        rows, queries = text.tokens.shape[0], self.config.queries
        own = jnp.full(text.tokens.shape, 2 if mask == "unimodal" else 1)
        ones = jnp.ones((rows, queries), own.dtype)
        ids = {
            "q_segment_ids": jnp.concatenate([ones, own], axis=1),
            "kv_segment_ids": jnp.concatenate([ones, jnp.where(text.mask, own, 0)], axis=1),
        }
        return ids | ({"causal": True, "prefix": queries} if mask == "causal" else {})

    def outputs(self, audio, text: AlignerText, mask: Mask = "bidirectional", key=None) -> tuple[jax.Array, jax.Array]:
        """Run the transformer.

        Args:
            audio: normalised features [B, T, dim]. text: may be of length 0. mask: see `mask`. key: turns dropout on.

        Returns:
            Last hidden states of queries [B, Q, hidden] and text [B, L, hidden].
        """
        embed_key, key = (None, None) if key is None else jax.random.split(key)
        return self.run(self.embeddings(audio, text, embed_key), audio, self.mask(text, mask), key)

    def run(self, x: tuple[jax.Array, jax.Array], audio: jax.Array, seen: dict[str, Any], key=None):
        """All blocks on (queries, text), in groups of `cross_every` whose first reads the features audio [B, T, dim].

        The groups are scanned; the last may be shorter.
        """
        c = self.config
        whole, left = divmod(c.depth, c.cross_every)
        edge = whole * c.cross_every

        def group(layers, x, keys):
            blocks, cross = layers
            for i in range(jax.tree.leaves(blocks)[0].shape[0]):
                block = jax.tree.map(lambda leaf: leaf[i], blocks)  # noqa: B023
                x = block(*x, None if i else cross, audio, seen, None if keys is None else keys[i])
            return x, None

        take = lambda layers, index: jax.tree.map(lambda leaf: leaf[index], layers)
        keys = stack.layer_keys(key, c.depth)
        if whole:
            by_group = lambda leaf: leaf[:edge].reshape(whole, c.cross_every, *leaf.shape[1:])
            groups = jax.tree.map(by_group, self.blocks), take(self.cross, slice(whole))
            x, _ = stack.run(group, groups, x, None if keys is None else by_group(keys), remat=c.remat)
        if left:
            rest = slice(edge, c.depth)
            x, _ = group((take(self.blocks, rest), take(self.cross, whole)), x, None if keys is None else keys[rest])
        return x

    def __call__(
        self, features: Features, text: AlignerText | None = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Features, and the text that the queries are to listen for -> (tokens [B, queries, out_dim], None)."""
        audio = self.normalise(features)
        if text is None or not self.config.reads_text:
            text = AlignerText.none(audio.shape[0])
        queries, _ = self.outputs(audio, text, key=key)
        return self.proj(queries), None
