"""LLaMA-family decoder: LLaMA, Vicuna, TinyLlama, SmolLM2 (Touvron et al. 2023; `transformers` `LlamaForCausalLM`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.mesh import constrain
from alm_jax.kernels.attention import attention, decode_attention
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense, Lora
from alm_jax.layers.embed import Embed
from alm_jax.layers.mlp import GatedMlp
from alm_jax.layers.norm import RMSNorm
from alm_jax.layers.rope import rotary_angles, rotate
from alm_jax.models.cache import KVCache

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes; defaults are LLaMA / Vicuna 7B.

    Attributes:
        vocab_size, dim, depth, heads, kv_heads, mlp_dim: sizes; `kv_heads` < `heads` is grouped-query attention.
        rope_theta: base of the rotary frequencies. norm_eps: of every RMSNorm.
        tie_embeddings: the output head is the embedding table.
        lora: adapters inside the blocks, or None.
        remat: what the backward pass recomputes (`layers.stack.run`).
    """

    vocab_size: int = 32000
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp_dim: int = 11008
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    lora: Lora | None = None
    remat: stack.Remat = "none"

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads


class CausalAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, c: LlamaConfig, key: jax.Array):
        keys = jax.random.split(key, 4)
        kv_dim = c.kv_heads * c.head_dim
        adapter = c.lora.at if c.lora else lambda path: None
        self.q = Dense(c.dim, c.dim, keys[0], axes=(ax.EMBED, ax.HEADS), bias=False, lora=adapter("attn.q"))
        self.k = Dense(c.dim, kv_dim, keys[1], axes=(ax.EMBED, ax.KV_HEADS), bias=False, lora=adapter("attn.k"))
        self.v = Dense(c.dim, kv_dim, keys[2], axes=(ax.EMBED, ax.KV_HEADS), bias=False, lora=adapter("attn.v"))
        self.o = Dense(c.dim, c.dim, keys[3], axes=(ax.HEADS, ax.EMBED), bias=False, lora=adapter("attn.o"))
        self.head_dim = c.head_dim

    def __call__(self, x, rope, attend: Attend, key=None):
        """[B, L, dim] -> ([B, L, dim], (keys, values) [B, L, kv_heads, head_dim])."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        heads = lambda y: rearrange(y, "b l (h d) -> b l h d", d=self.head_dim)
        q, k = rotate(heads(self.q(x, keys[0])), *rope), rotate(heads(self.k(x, keys[1])), *rope)
        v = heads(self.v(x, keys[2]))
        out = rearrange(attend(q, k, v), "b l h d -> b l (h d)")
        return self.o(out, keys[3]), (k, v)


class LlamaBlock(nnx.Module):
    """Pre-norm block: attention, then a gated feed-forward."""

    def __init__(self, c: LlamaConfig, key: jax.Array):
        attn_key, mlp_key = jax.random.split(key)
        self.attn_norm = RMSNorm(c.dim, c.norm_eps)
        self.attn = CausalAttention(c, attn_key)
        self.mlp_norm = RMSNorm(c.dim, c.norm_eps)
        self.mlp = GatedMlp(c.dim, c.mlp_dim, mlp_key, c.lora)

    def __call__(self, x, rope, attend: Attend, key=None):
        """[B, L, dim] -> ([B, L, dim], (keys, values))."""
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        y, kv = self.attn(self.attn_norm(x), rope, attend, attn_key)
        x = constrain(x + y, ax.BATCH, ax.LENGTH, None)
        x = x + self.mlp(self.mlp_norm(x), mlp_key)
        return constrain(x, ax.BATCH, ax.LENGTH, None), kv


class Llama(nnx.Module):
    """Embeddings in, hidden states out; the head is apart, so that losses may fuse with it."""

    def __init__(self, config: LlamaConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 3)
        self.embed = Embed(c.vocab_size, c.dim, keys[0])
        self.blocks = stack.build(lambda k: LlamaBlock(c, k), keys[1], c.depth)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        if not c.tie_embeddings:
            self.head = Dense(c.dim, c.vocab_size, keys[2], axes=(ax.EMBED, ax.VOCAB), bias=False)
        self.config = config

    def rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotary cosine and sine of int [B, L] positions."""
        return rotary_angles(positions, self.config.head_dim, self.config.rope_theta)

    def __call__(self, x, positions, q_segment_ids, kv_segment_ids, key=None):
        """Hidden states of whole rows.

        Args:
            x: embeddings [B, L, dim]; its dtype is the compute dtype.
            positions, q_segment_ids, kv_segment_ids: int [B, L], see `core.sequence.Batch`.
            key: turns adapter dropout on.

        Returns:
            [B, L, dim] after the final norm.
        """
        return self._run(x, positions, q_segment_ids, kv_segment_ids, key, collect=False)[0]

    def prefill(self, x, positions, segment_ids, slots: int) -> tuple[jax.Array, KVCache]:
        """As `__call__`, and a cache of `slots` slots whose first L are filled."""
        hidden, (k, v) = self._run(x, positions, segment_ids, segment_ids, None, collect=True)
        return hidden, KVCache.filled(k, v, segment_ids, slots)

    def _run(self, x, positions, q_segment_ids, kv_segment_ids, key, collect):
        def attend(q, k, v):
            return attention(q, k, v, q_segment_ids=q_segment_ids, kv_segment_ids=kv_segment_ids, causal=True)

        rope = self.rope(positions)

        def body(block, x, key):
            x, kv = block(x, rope, attend, key)
            return x, kv if collect else None

        keys = stack.layer_keys(key, self.config.depth)
        x, kv = stack.run(body, self.blocks, x, keys, remat=self.config.remat)
        return self.norm(x), kv

    def decode(self, x, positions, cache: KVCache, index) -> tuple[jax.Array, KVCache]:
        """Hidden states of L new tokens a row, written to cache slots index..index+L-1.

        Args:
            x: [B, L, dim]. positions: int [B, L] true positions. index: scalar, the same slot for all rows.

        The layer scan only reads the cache; the new keys and values are written by one update after it, so that a
        donated cache is changed in place.
        """
        new_ids = jnp.ones(positions.shape, jnp.int32)
        rope = self.rope(positions)

        def body(block, x, layer_cache):
            k_cache, v_cache = layer_cache

            def attend(q, k, v):
                ids = {"q_segment_ids": new_ids, "kv_segment_ids": cache.segment_ids}
                return decode_attention(q, k, v, k_cache, v_cache, **ids)

            return block(x, rope, attend)

        x, (k, v) = stack.run(body, self.blocks, x, (cache.k, cache.v))
        return self.norm(x), cache.write(k, v, new_ids, index)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., dim] -> float32 logits [..., vocab]."""
        if self.config.tie_embeddings:
            return self.embed.attend(hidden)
        kernel = self.head.kernel[...].astype(hidden.dtype)
        return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
