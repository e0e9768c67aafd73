"""GPT-2: MATS's smaller decoder, the text tower of MS-CLAP (Radford et al. 2019; `transformers` `GPT2LMHeadModel`)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.kernels import linear_cross_entropy
from alm_jax.layers import initializers as init
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense, Lora
from alm_jax.layers.embed import Embed
from alm_jax.layers.mlp import Activation, Mlp
from alm_jax.layers.norm import LayerNorm
from alm_jax.models.decoders.decoder import Attend, Decoder

_LAYERS = ("attn.qkv", "attn.o", "mlp.up", "mlp.down")


@dataclass(frozen=True)
class Gpt2Config:
    """Sizes; defaults are the smallest GPT-2 (124 million parameters).

    Attributes:
        vocab_size, dim, depth, heads, mlp_dim: sizes.
        positions: rows of the learnt position table, the longest row.
        activation, norm_eps: of every block. tie_embeddings: the output head is the embedding table.
        lora: adapters on `attn.qkv`, `attn.o`, `mlp.up` or `mlp.down`, or None.
        remat: what the backward pass recomputes (`layers.stack.run`).
        cross_entropy: which kernel computes the training loss (`kernels.linear_cross_entropy`).
    """

    vocab_size: int = 50257
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    positions: int = 1024
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    lora: Lora | None = None
    remat: stack.Remat = "none"
    cross_entropy: linear_cross_entropy.Implementation = "auto"

    def __post_init__(self):
        if self.lora and not any(map(self.lora.at, _LAYERS)):
            raise ConfigError(f"lora.targets {self.lora.targets} fit no layer of GPT-2; expected {', '.join(_LAYERS)}")


class Gpt2Attention(nnx.Module):
    """Causal attention. Query, key and value are one layer, since adapters (PEFT's `c_attn`) have one A for them."""

    def __init__(self, c: Gpt2Config, key: jax.Array):
        keys = jax.random.split(key)
        adapter = c.lora.at if c.lora else lambda path: None
        self.qkv = Dense(c.dim, 3 * c.dim, keys[0], axes=(ax.EMBED, ax.HEADS), lora=adapter("attn.qkv"))
        self.o = Dense(c.dim, c.dim, keys[1], axes=(ax.HEADS, ax.EMBED), lora=adapter("attn.o"))
        self.heads = c.heads

    def __call__(self, x, attend: Attend, key=None):
        """[B, L, dim] -> ([B, L, dim], (keys, values) [B, L, heads, dim / heads])."""
        keys = (None, None) if key is None else jax.random.split(key)
        q, k, v = rearrange(self.qkv(x, keys[0]), "b l (three h d) -> three b l h d", three=3, h=self.heads)
        return self.o(rearrange(attend(q, k, v), "b l h d -> b l (h d)"), keys[1]), (k, v)


class Gpt2Block(nnx.Module):
    """Pre-norm block: attention, then a feed-forward."""

    def __init__(self, c: Gpt2Config, key: jax.Array):
        attn_key, mlp_key = jax.random.split(key)
        self.attn_norm = LayerNorm(c.dim, c.norm_eps)
        self.attn = Gpt2Attention(c, attn_key)
        self.mlp_norm = LayerNorm(c.dim, c.norm_eps)
        self.mlp = Mlp(c.dim, c.mlp_dim, mlp_key, activation=c.activation, lora=c.lora)

    def __call__(self, x, place: None, attend: Attend, key=None):
        """[B, L, dim] -> ([B, L, dim], (keys, values))."""
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        y, kv = self.attn(self.attn_norm(x), attend, attn_key)
        x = constrain(x + y, ax.BATCH, ax.LENGTH, None)
        x = x + self.mlp(self.mlp_norm(x), mlp_key)
        return constrain(x, ax.BATCH, ax.LENGTH, None), kv


class Gpt2(Decoder):
    """A decoder (`models.decoders.decoder.Decoder`) with a table of positions."""

    def __init__(self, config: Gpt2Config, key: jax.Array):
        c, keys = config, jax.random.split(key, 4)
        self.embed = Embed(c.vocab_size, c.dim, keys[0])
        self.pos_embed = init.normal(keys[1], (c.positions, c.dim), (ax.POSITION, ax.EMBED))
        self.blocks = stack.build(lambda k: Gpt2Block(c, k), keys[2], c.depth)
        self.norm = LayerNorm(c.dim, c.norm_eps)
        if not c.tie_embeddings:
            self.head = Dense(c.dim, c.vocab_size, keys[3], axes=(ax.EMBED, ax.VOCAB), bias=False)
        self.config = config

    @property
    def limit(self) -> int:
        return self.config.positions

    def begin(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, None]:
        """Embeddings of tokens (and audio) plus those of their positions; blocks need nothing more.

        Raises:
            ConfigError: the rows are longer than the table.
        """
        if x.shape[1] > self.limit:
            raise ConfigError(
                f"rows of {x.shape[1]} positions do not fit GPT-2's table of {self.limit}: shorten the text"
            )
        return x + self.pos_embed[...].astype(x.dtype)[positions], None
