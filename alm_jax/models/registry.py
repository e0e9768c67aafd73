"""Explicit tables from names to parts; nothing is looked up by import string."""

from __future__ import annotations

from typing import Any

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import ConfigError
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.pooled_linear import PooledLinear, PooledLinearConfig
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormer, QFormerConfig
from alm_jax.models.aligners.tltr import Tltr, TltrConfig
from alm_jax.models.decoders.llama import Llama, LlamaConfig
from alm_jax.models.decoders.whisper import WhisperSeq2Seq, WhisperSeq2SeqConfig
from alm_jax.models.encoders.ast import Ast, AstConfig
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig
from alm_jax.models.encoders.cav_mae import CavMae, CavMaeConfig
from alm_jax.models.encoders.cnn14 import Cnn14, Cnn14Config
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig

ENCODERS = {
    "cav_mae": (CavMaeConfig, CavMae),
    "ast": (AstConfig, Ast),
    "audio_mae": (AudioMaeConfig, AudioMae),
    "cnn14": (Cnn14Config, Cnn14),
    "whisper": (WhisperConfig, Whisper),
}
ALIGNERS = {
    "pooled_linear": (PooledLinearConfig, PooledLinear),
    "tltr": (TltrConfig, Tltr),
    "qformer": (QFormerConfig, QFormer),
}
DECODERS = {"llama": (LlamaConfig, Llama)}
MODELS = {"whisper_seq2seq": (WhisperSeq2SeqConfig, WhisperSeq2Seq)}  # whole models, no part of a system

CONFIGS: dict[str, Any] = {
    "cav_mae": CavMaeConfig(),
    "ast": AstConfig(),
    "audio_mae": AudioMaeConfig(),
    "cnn14": Cnn14Config(),
    "whisper_tiny": WhisperConfig(dim=384, heads=6, depth=4),
    "whisper_base": WhisperConfig(),
    "whisper_small": WhisperConfig(dim=768, heads=12, depth=12),
    "whisper_medium": WhisperConfig(dim=1024, heads=16, depth=24),
    "whisper_large_v1": WhisperConfig(dim=1280, heads=20, depth=32),
    "pooled_linear": PooledLinearConfig(),
    "tltr": TltrConfig(),
    "qformer": QFormerConfig(),
    "qformer_pretraining": PretrainingConfig(),
    "vicuna_7b": LlamaConfig(),
    "vicuna_13b": LlamaConfig(dim=5120, depth=40, heads=40, kv_heads=40, mlp_dim=13824),
    "smollm2_135m": LlamaConfig(
        vocab_size=49152,
        dim=576,
        depth=30,
        heads=9,
        kv_heads=3,
        mlp_dim=1536,
        rope_theta=100000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    ),
    "lora": Lora(),
}

_MODULES = {config: module for table in (ENCODERS, ALIGNERS, DECODERS, MODELS) for config, module in table.values()}


def module_of(config: Any) -> type:
    """The module class that a part's config describes."""
    return _MODULES[type(config)]


def named_config(name: str) -> Any:
    """The config that a name in `CONFIGS` stands for.

    Raises:
        ConfigError: no such name; the message holds the closest one.
    """
    if name not in CONFIGS:
        raise ConfigError(
            f"no config is named {name!r}{did_you_mean(name, CONFIGS) or '.'} Names: {', '.join(CONFIGS)}"
        )
    return CONFIGS[name]
