"""LLaMA-family decoder: LLaMA 1 to 3, Vicuna, TinyLlama, SmolLM2, Qwen2 and 2.5 (Touvron et al. 2023; Yang et al. 2024;
`transformers` `LlamaForCausalLM`, `Qwen2ForCausalLM`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
from einops import rearrange
from flax import nnx

from alm_jax.core import axes as ax
from alm_jax.core.mesh import constrain
from alm_jax.kernels import linear_cross_entropy
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense, Lora
from alm_jax.layers.embed import Embed
from alm_jax.layers.mlp import GatedMlp
from alm_jax.layers.norm import RMSNorm
from alm_jax.layers.rope import LinearRope, Llama3Rope, rotary_angles, rotate
from alm_jax.models.decoders.decoder import Attend, Decoder


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes; defaults are LLaMA / Vicuna 7B.

    Attributes:
        vocab_size, dim, depth, heads, kv_heads, mlp_dim: sizes; `kv_heads` < `heads` is grouped-query attention.
        head_dim: width of one head; None is dim / heads.
        bias: which of the projections q, k, v and o have a bias (Qwen2: the first three).
        rope_theta, rope_scaling: base of the rotary frequencies, and how they are stretched.
        norm_eps: of every RMSNorm. tie_embeddings: the output head is the embedding table.
        positions: longest row of the training (`max_position_embeddings`); longer ones are refused.
        lora: adapters inside the blocks, or None.
        remat: what the backward pass recomputes (`layers.stack.run`).
        cross_entropy: which kernel computes the training loss (`kernels.linear_cross_entropy`).
    """

    vocab_size: int = 32000
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp_dim: int = 11008
    head_dim: int | None = None
    bias: Literal["", "qkv", "qkvo"] = ""
    rope_theta: float = 10000.0
    rope_scaling: LinearRope | Llama3Rope | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    positions: int = 2048
    lora: Lora | None = None
    remat: stack.Remat = "none"
    cross_entropy: linear_cross_entropy.Implementation = "auto"

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.dim // self.heads if self.head_dim is None else self.head_dim


class CausalAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, c: LlamaConfig, key: jax.Array):
        keys = jax.random.split(key, 4)
        q_dim, kv_dim = c.heads * c.head_width, c.kv_heads * c.head_width
        options = lambda name: {"bias": name in c.bias, "lora": c.lora and c.lora.at(f"attn.{name}")}
        self.q = Dense(c.dim, q_dim, keys[0], axes=(ax.EMBED, ax.HEADS), **options("q"))
        self.k = Dense(c.dim, kv_dim, keys[1], axes=(ax.EMBED, ax.KV_HEADS), **options("k"))
        self.v = Dense(c.dim, kv_dim, keys[2], axes=(ax.EMBED, ax.KV_HEADS), **options("v"))
        self.o = Dense(q_dim, c.dim, keys[3], axes=(ax.HEADS, ax.EMBED), **options("o"))
        self.head_width = c.head_width

    def __call__(self, x, rope, attend: Attend, key=None):
        """[B, L, dim] -> ([B, L, dim], (keys, values) [B, L, kv_heads, head_width])."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        heads = lambda y: rearrange(y, "b l (h d) -> b l h d", d=self.head_width)
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


class Llama(Decoder):
    """A decoder (`models.decoders.decoder.Decoder`) with rotary positions."""

    def __init__(self, config: LlamaConfig, key: jax.Array):
        c, keys = config, jax.random.split(key, 3)
        self.embed = Embed(c.vocab_size, c.dim, keys[0])
        self.blocks = stack.build(lambda k: LlamaBlock(c, k), keys[1], c.depth)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        if not c.tie_embeddings:
            self.head = Dense(c.dim, c.vocab_size, keys[2], axes=(ax.EMBED, ax.VOCAB), bias=False)
        self.config = config

    @property
    def limit(self) -> int:
        c = self.config
        # Published configs of linearly stretched models tell the length from before; those of Llama 3.1 the new one.
        return int(c.positions * (c.rope_scaling.factor if isinstance(c.rope_scaling, LinearRope) else 1))

    def begin(self, x: jax.Array, positions: jax.Array):
        """The embeddings as they are; rotary cosine and sine for every block."""
        c = self.config
        return x, rotary_angles(positions, c.head_width, c.rope_theta, c.rope_scaling)


def _llama3(factor: float | None = None, positions: int = 131072, **sizes) -> LlamaConfig:
    usual = {"vocab_size": 128256, "kv_heads": 8, "rope_theta": 500000.0, "norm_eps": 1e-5, "positions": positions}
    return LlamaConfig(**usual | sizes, rope_scaling=None if factor is None else Llama3Rope(factor))


def _smollm2(**sizes) -> LlamaConfig:
    usual = {"vocab_size": 49152, "rope_theta": 100000.0, "norm_eps": 1e-5, "tie_embeddings": True, "positions": 8192}
    return LlamaConfig(**usual | sizes)


def _qwen2(**sizes) -> LlamaConfig:
    usual = {"vocab_size": 151936, "bias": "qkv", "rope_theta": 1e6, "tie_embeddings": True, "positions": 32768}
    return LlamaConfig(**usual | sizes)


_13B = {"dim": 5120, "depth": 40, "heads": 40, "kv_heads": 40, "mlp_dim": 13824}
_70B = {"dim": 8192, "depth": 80, "heads": 64, "kv_heads": 8, "mlp_dim": 28672}
_LLAMA2 = {"norm_eps": 1e-5, "positions": 4096}

# Sizes of Qwen2 and Qwen2.5 alike, with the positions of the Instruct models.
_QWEN2 = {
    "0.5b": _qwen2(dim=896, depth=24, heads=14, kv_heads=2, mlp_dim=4864),
    "1.5b": _qwen2(dim=1536, depth=28, heads=12, kv_heads=2, mlp_dim=8960),
    "7b": _qwen2(vocab_size=152064, dim=3584, depth=28, heads=28, kv_heads=4, mlp_dim=18944, tie_embeddings=False),
}

# Published sizes. Vicuna is the one over LLaMA 1 (versions 1.1 and 1.3), which LTU has; version 1.5 is over Llama 2.
LLAMAS = {
    "vicuna_7b": LlamaConfig(),
    "vicuna_13b": LlamaConfig(**_13B),
    "llama2_7b": LlamaConfig(**_LLAMA2),
    "llama2_13b": LlamaConfig(**_13B, **_LLAMA2),
    "llama2_70b": LlamaConfig(**_70B, **_LLAMA2),
    "llama3_8b": _llama3(positions=8192, mlp_dim=14336),
    "llama3.1_8b": _llama3(8.0, mlp_dim=14336),
    "llama3.1_70b": _llama3(8.0, **_70B),
    "llama3.2_1b": _llama3(32.0, dim=2048, depth=16, mlp_dim=8192, tie_embeddings=True),
    "llama3.2_3b": _llama3(32.0, dim=3072, depth=28, heads=24, mlp_dim=8192, tie_embeddings=True),
    "tinyllama_1.1b": LlamaConfig(dim=2048, depth=22, heads=32, kv_heads=4, mlp_dim=5632, norm_eps=1e-5),
    "smollm2_135m": _smollm2(dim=576, depth=30, heads=9, kv_heads=3, mlp_dim=1536),
    "smollm2_360m": _smollm2(dim=960, depth=32, heads=15, kv_heads=5, mlp_dim=2560),
    "smollm2_1.7b": _smollm2(dim=2048, depth=24, heads=32, kv_heads=32, mlp_dim=8192, rope_theta=130000.0),
    **{f"{family}_{size}": config for family in ("qwen2", "qwen2.5") for size, config in _QWEN2.items()},
}
