"""Explicit tables from names to parts; nothing is looked up by import string."""

from __future__ import annotations

from typing import Any

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import MESHES
from alm_jax.core.precision import PRECISIONS
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.clap_heads import ClapHeads, ClapHeadsConfig
from alm_jax.models.aligners.mae_decoder import MaeDecoder, MaeDecoderConfig
from alm_jax.models.aligners.mapper import Mapper, MapperConfig
from alm_jax.models.aligners.pooled_linear import PooledLinear, PooledLinearConfig
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormer, QFormerConfig
from alm_jax.models.aligners.tltr import Tltr, TltrConfig
from alm_jax.models.clap import LAION_CLAP_FUSED, Clap, ClapConfig, LaionClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2, Gpt2Config
from alm_jax.models.decoders.llama import LLAMAS, Llama, LlamaConfig
from alm_jax.models.decoders.whisper import WhisperDecoderConfig, WhisperSeq2Seq, WhisperSeq2SeqConfig
from alm_jax.models.encoders.ast import Ast, AstConfig
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig
from alm_jax.models.encoders.beats import Beats, BeatsConfig
from alm_jax.models.encoders.cav_mae import CavMae, CavMaeConfig
from alm_jax.models.encoders.clap import ClapEncoder, ClapEncoderConfig
from alm_jax.models.encoders.cnn14 import Cnn14, Cnn14Config
from alm_jax.models.encoders.htsat import Htsat, HtsatConfig
from alm_jax.models.encoders.vit import Vit, VitConfig
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from alm_jax.models.text.bert import Bert, BertConfig

ENCODERS = {
    "cav_mae": (CavMaeConfig, CavMae),
    "ast": (AstConfig, Ast),
    "audio_mae": (AudioMaeConfig, AudioMae),
    "beats": (BeatsConfig, Beats),
    "clap_encoder": (ClapEncoderConfig, ClapEncoder),
    "cnn14": (Cnn14Config, Cnn14),
    "htsat": (HtsatConfig, Htsat),
    "vit": (VitConfig, Vit),
    "whisper": (WhisperConfig, Whisper),
}
ALIGNERS = {
    "pooled_linear": (PooledLinearConfig, PooledLinear),
    "tltr": (TltrConfig, Tltr),
    "qformer": (QFormerConfig, QFormer),
    "mapper": (MapperConfig, Mapper),
    "clap_heads": (ClapHeadsConfig, ClapHeads),
    "mae_decoder": (MaeDecoderConfig, MaeDecoder),
}
DECODERS = {"llama": (LlamaConfig, Llama), "gpt2": (Gpt2Config, Gpt2)}
TEXT = {"bert": (BertConfig, Bert)}
MODELS = {  # whole models, no part of a system
    "whisper_seq2seq": (WhisperSeq2SeqConfig, WhisperSeq2Seq),
    "clap": (ClapConfig, Clap),
    "laion_clap": (LaionClapConfig, Clap),
}


def _roberta(**sizes: int) -> BertConfig:
    return BertConfig(vocab_size=50265, positions=514, position_offset=2, token_types=1, norm_eps=1e-5, **sizes)


_WHISPERS = {
    "tiny": WhisperConfig(dim=384, heads=6, depth=4),
    "base": WhisperConfig(),
    "small": WhisperConfig(dim=768, heads=12, depth=12),
    "medium": WhisperConfig(dim=1024, heads=16, depth=24),
    "large_v1": WhisperConfig(dim=1280, heads=20, depth=32),
    "large_v2": WhisperConfig(dim=1280, heads=20, depth=32),
    "large_v3": WhisperConfig(mels=128, dim=1280, heads=20, depth=32),
    "large_v3_turbo": WhisperConfig(mels=128, dim=1280, heads=20, depth=32),
}


def _whole_whisper(size: str) -> WhisperSeq2SeqConfig:
    encoder = _WHISPERS[size]
    depth = 4 if size.endswith("turbo") else encoder.depth
    vocab_size = 51866 if encoder.mels == 128 else 51865  # version 3 knows one language more
    return WhisperSeq2SeqConfig(encoder, WhisperDecoderConfig(vocab_size, encoder.dim, encoder.heads, depth))


_BLIP = {"dim": 1408, "steps": 257, "hidden": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}  # over EVA's ViT-g

CONFIGS: dict[str, Any] = {
    "cav_mae": CavMaeConfig(),
    "ast": AstConfig(),
    "ast_10_10_0.4593": AstConfig(classes=527),
    "audio_mae": AudioMaeConfig(),
    "audio_mae_audioset": AudioMaeConfig(classes=527),
    "beats_iter3": BeatsConfig(),
    "beats_iter3_audioset": BeatsConfig(classes=527),
    "clap_encoder": ClapEncoderConfig(),
    "cnn14": Cnn14Config(),
    "cnn14_audioset": Cnn14Config(classes=527),
    "htsat": HtsatConfig(),
    "eva_vit_g": VitConfig(),
    "msclap_2023": ClapConfig(),
    "clap_htsat_unfused": LaionClapConfig(),
    "clap_htsat_fused": LAION_CLAP_FUSED,
    **{f"whisper_{size}": config for size, config in _WHISPERS.items()},
    **{f"whisper_seq2seq_{size}": _whole_whisper(size) for size in _WHISPERS},
    "pooled_linear": PooledLinearConfig(),
    "tltr": TltrConfig(),
    "qformer": QFormerConfig(),
    "mapper": MapperConfig(),
    "clap_heads": ClapHeadsConfig(),
    "mae_decoder": MaeDecoderConfig(),
    "blip2_qformer": QFormerConfig(**_BLIP, reads_text=False),
    "instructblip_qformer": QFormerConfig(**_BLIP),
    "qformer_pretraining": PretrainingConfig(),
    **LLAMAS,
    "gpt2": Gpt2Config(),
    "gpt2_medium": Gpt2Config(dim=1024, depth=24, heads=16, mlp_dim=4096),
    "gpt2_large": Gpt2Config(dim=1280, depth=36, heads=20, mlp_dim=5120),
    "gpt2_xl": Gpt2Config(dim=1600, depth=48, heads=25, mlp_dim=6400),
    "bert_base": BertConfig(),
    "bert_large": BertConfig(dim=1024, depth=24, heads=16, mlp_dim=4096),
    "minilm_l6": BertConfig(dim=384, depth=6, mlp_dim=1536),
    "roberta_base": _roberta(),
    "roberta_large": _roberta(dim=1024, depth=24, heads=16, mlp_dim=4096),
    "lora": Lora(),
}

_MODULES = {
    config: module for table in (ENCODERS, ALIGNERS, DECODERS, TEXT, MODELS) for config, module in table.values()
}
PARTS = frozenset(config for table in (ENCODERS, ALIGNERS, DECODERS, TEXT) for config, _ in table.values())
"""Classes of the configs of parts of a system."""


def module_of(config: Any) -> type:
    """The module class that a part's config describes."""
    return _MODULES[type(config)]


def named_config(name: str) -> Any:
    """The config that a name stands for: of a model in `CONFIGS`, or of a mesh or a precision.

    Raises:
        ConfigError: no such name; the message holds the closest one.
    """
    named = CONFIGS | MESHES | PRECISIONS
    if name not in named:
        raise ConfigError(f"no config is named {name!r}{did_you_mean(name, named) or '.'} Names: {', '.join(named)}")
    return named[name]
