"""BERT and RoBERTa encoders, MiniLM sentence embeddings among them (Devlin et al. 2019; Liu et al. 2019; Reimers and
Gurevych 2019; `transformers` `BertModel`, `RobertaModel`)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.attention import Attention
from alm_jax.layers.dense import Dense
from alm_jax.layers.embed import Embed
from alm_jax.layers.mlp import Activation, Mlp
from alm_jax.layers.norm import LayerNorm
from alm_jax.models.contrast import unit


@dataclass(frozen=True)
class BertConfig:
    """Sizes; defaults are BERT base, uncased.

    Attributes:
        vocab_size, dim, depth, heads, mlp_dim: sizes.
        positions: rows of the learnt position table. position_offset: the row of a text's first token; above 0
            (RoBERTa: 2) padding takes the row before it and does not count.
        token_types: kinds of segment (two sentences of a pair).
        activation, norm_eps: of every block.
        pooler: whether there is the layer that `Bert.pooled` applies to the first token.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    vocab_size: int = 30522
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    positions: int = 512
    position_offset: int = 0
    token_types: int = 2
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    pooler: bool = True
    remat: stack.Remat = "none"


class BertEmbed(nnx.Module):
    """Words, positions and token types, added and normalised."""

    def __init__(self, c: BertConfig, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.words = Embed(c.vocab_size, c.dim, keys[0])
        self.positions = init.normal(keys[1], (c.positions, c.dim), (ax.POSITION, ax.EMBED))
        self.token_types = init.normal(keys[2], (c.token_types, c.dim), (None, ax.EMBED))
        self.norm = LayerNorm(c.dim, c.norm_eps)

    def __call__(self, ids, positions, token_types, dtype: jnp.dtype) -> jax.Array:
        """int [B, L] each -> [B, L, dim] in `dtype`."""
        x = self.words(ids, dtype) + self.positions[...].astype(dtype)[positions]
        return self.norm(x + self.token_types[...].astype(dtype)[token_types])


class BertBlock(nnx.Module):
    """Post-norm block: x = norm(x + attn(x)), then norm(x + mlp(x))."""

    def __init__(self, c: BertConfig, key: jax.Array):
        attn_key, mlp_key = jax.random.split(key)
        self.attn = Attention(c.dim, c.heads, attn_key)
        self.attn_norm = LayerNorm(c.dim, c.norm_eps)
        self.mlp = Mlp(c.dim, c.mlp_dim, mlp_key, activation=c.activation)
        self.mlp_norm = LayerNorm(c.dim, c.norm_eps)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, L, dim], int [B, L] (0: not seen by anyone) -> [B, L, dim]."""
        x = self.attn_norm(x + self.attn(x, q_segment_ids=jnp.ones_like(mask), kv_segment_ids=mask))
        return constrain(self.mlp_norm(x + self.mlp(x)), ax.BATCH, ax.LENGTH, None)


class Bert(nnx.Module):
    """Token ids -> one vector a token; `pooled` and `sentence_embedding` make one a text of them."""

    def __init__(self, config: BertConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 3)
        self.embed = BertEmbed(c, keys[0])
        self.blocks = stack.build(lambda k: BertBlock(c, k), keys[1], c.depth)
        if c.pooler:
            self.pooler = Dense(c.dim, c.dim, keys[2], axes=(ax.EMBED, None))
        self.config = config

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        token_types: jax.Array | None = None,
        positions: jax.Array | None = None,
        dtype: jnp.dtype = jnp.float32,
    ) -> jax.Array:
        """Hidden states [B, L, dim] of the last block, in the compute dtype `dtype`.

        Args:
            ids: int [B, L]. mask: [B, L], True or 1 where a token is, False or 0 at padding; None if there is none.
            token_types: int [B, L], zeros by default.
            positions: rows of the position table, int [B, L]; by default as the model was trained (`BertConfig`).

        Raises:
            ConfigError: the rows are longer than the table.
        """
        if ids.shape[1] + self.config.position_offset > self.config.positions:
            raise ConfigError(
                f"texts of {ids.shape[1]} tokens do not fit a table of {self.config.positions} positions, of which "
                f"{self.config.position_offset} are never a token's: shorten the text"
            )
        mask = jnp.ones_like(ids) if mask is None else mask.astype(jnp.int32)
        token_types = jnp.zeros_like(ids) if token_types is None else token_types
        positions = self.positions(mask) if positions is None else positions
        x = constrain(self.embed(ids, positions, token_types, dtype), ax.BATCH, ax.LENGTH, None)
        x, _ = stack.run(lambda block, x, _: (block(x, mask), None), self.blocks, x, remat=self.config.remat)
        return x

    def positions(self, mask: jax.Array) -> jax.Array:
        """Rows of the position table for a mask int [B, L]: counted from the row's start, or from its first token."""
        offset = self.config.position_offset
        if not offset:
            return jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
        return jnp.cumsum(mask, axis=1) * mask + offset - 1

    def pooled(self, hidden: jax.Array) -> jax.Array:
        """[B, L, dim] -> tanh of a linear layer on the first token [B, dim] (BERT's `pooler_output`)."""
        return jnp.tanh(self.pooler(hidden[:, 0]))


class BertClassifier(nnx.Module):
    """Token ids -> one number a class, from the first token: FENSE's `BERTFlatClassifier`."""

    def __init__(self, config: BertConfig, classes: int, key: jax.Array):
        keys = jax.random.split(key)
        self.bert = Bert(config, keys[0])
        self.head = Dense(config.dim, classes, keys[1], axes=(ax.EMBED, None))

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """int [B, L] both -> logits [B, classes]."""
        return self.head(self.bert(ids, mask)[:, 0])


def mean_of_tokens(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states [B, L, dim], averaged where `mask` [B, L] is 1: float32 [B, dim]."""
    weight = mask.astype(jnp.float32)[..., None]
    return (hidden.astype(jnp.float32) * weight).sum(1) / jnp.maximum(weight.sum(1), 1e-9)


def sentence_embedding(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """`mean_of_tokens` scaled to length 1: float32 [B, dim].

    How `sentence-transformers/all-MiniLM-L6-v2` pools a text.
    """
    return unit(mean_of_tokens(hidden, mask))
