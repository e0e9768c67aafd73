"""The checkpoint layouts that can be read and written, by name, and which one a file has."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import NoneType
from typing import Any

from alm_jax.convert import (
    alm,
    apt,
    apt_blip2,
    ast,
    audio_mae,
    beats,
    bert,
    cav_mae,
    clap,
    cnn14,
    gpt2,
    htsat,
    llama,
    ltu,
    ltu_as,
    mats,
    qformer,
    vit,
    whisper,
)
from alm_jax.convert.formats import TensorFile
from alm_jax.convert.load import Beginning, fold
from alm_jax.convert.names import PLAIN, PUBLISHED, TIED, Style
from alm_jax.convert.rules import Table
from alm_jax.core.config import config_types
from alm_jax.core.errors import CheckpointError
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.aligners.tltr import TltrConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.encoders.whisper import WhisperConfig


@dataclass(frozen=True)
class Layout:
    """One layout of one model or part.

    Attributes:
        signature: patterns, each of which some key of such a file fits; no file of a layout below in the list fits all,
            but for the `whole` of it.
        table: from the config of the part (`LlamaConfig`, ...) or of the system (`AlmConfig`) to its table.
        sizes: that config, as far as a file tells it (`convert.sizes`); the rest is the default.
        heads: what `config.json` calls the number of attention heads, where tensors do not tell it.
        settings: from the same config to the `config.json` of `transformers`, where that has the model.
        style: how the published files spell the keys: with LoRA, and whether tied tensors are written out.
        becomes: of a layout that is read and not written, the one that is written instead.
        whole: of a part of a larger model (an encoder), the layout of a file that holds all of that.
        parts: of a system's layout, the classes of the encoder's and the aligner's config.
        listens: of a model that is no encoder, what makes one of its config, and the encoder's table.
        begins: the class of config of a part that may begin as such a model, and how.
    """

    signature: tuple[str, ...]
    table: Callable[[Any], Table]
    sizes: Callable[[TensorFile], Any]
    heads: str = "num_attention_heads"
    settings: Callable[[Any], dict[str, Any]] | None = None
    style: Style = PLAIN
    becomes: str = ""
    whole: str = ""
    parts: tuple[type, ...] = ()
    listens: tuple[Callable[[Any], Any], Callable[[Any], Table]] | None = None
    begins: tuple[type, Callable[[Any], Beginning]] | None = None


_WHISPER_HEADS = "encoder_attention_heads"

# A layout whose name ends in `_hf` has the names of `transformers`.
LAYOUTS = {
    "ltu": Layout(
        ("*audio_encoder.blocks_a.0.*", "*audio_proj.1.weight"),
        ltu.official,
        ltu.sizes,
        style=PUBLISHED,
        parts=(CavMaeConfig, PooledLinearConfig),
    ),
    "ltu_as": Layout(
        ("*audio_encoder.time_tr.*", "*audio_proj.1.weight"),
        ltu_as.official,
        ltu_as.sizes,
        style=PUBLISHED,
        parts=(WhisperConfig, TltrConfig),
    ),
    "apt": Layout(
        ("*Qformer.bert.encoder.layer.0.attention.self.query.weight", "*ln_audio.weight"),
        apt.official,
        apt.sizes,
        parts=(AudioMaeConfig, QFormerConfig),
    ),
    "mats": Layout(
        ("*audio_mapper.transformer.layers.0.attn.to_queries.weight", "*audio_llama_proj.weight"),
        mats.official,
        mats.sizes,
        style=mats.PUBLISHED,
        parts=(ClapEncoderConfig, MapperConfig),
    ),
    "blip_hf": Layout(
        ("*vision_model.embeddings.class_embedding", "*qformer.encoder.layer.0.attention.attention.query.weight"),
        apt_blip2.hf,
        apt_blip2.hf_sizes,
        settings=apt_blip2.to_hf_config,
        parts=(NoneType, NoneType),
    ),
    "blip": Layout(
        ("*Qformer.bert.encoder.layer.0.attention.self.query.weight", "*ln_vision.weight"),
        apt_blip2.official,
        apt_blip2.sizes,
        parts=(NoneType, NoneType),
    ),
    "cav_mae": Layout(
        ("*blocks_a.0.*", "*patch_embed_a.proj.weight"), cav_mae.official, cav_mae.sizes, "audio_num_heads"
    ),
    "vit_hf": Layout(
        ("*embeddings.class_embedding", "*encoder.layers.0.self_attn.qkv.weight"),
        vit.hf,
        vit.sizes,
        settings=vit.to_hf_config,
    ),
    "vit_eva": Layout(("*patch_embed.proj.weight", "*blocks.0.attn.q_bias"), vit.official, vit.sizes),
    "audio_mae": Layout(
        ("*cls_token", "*patch_embed.proj.weight", "*blocks.0.attn.qkv.weight"),
        audio_mae.official,
        audio_mae.sizes,
        "num_heads",
    ),
    "ast_hf": Layout(
        ("*embeddings.distillation_token", "*layer.0.attention.attention.query.weight"),
        ast.hf,
        ast.sizes,
        settings=ast.to_hf_config,
    ),
    "ast_modules": Layout(
        ("*embeddings.distillation_token", "*layers.0.attention.q_proj.weight"),
        ast.modules,
        ast.sizes,
        settings=ast.to_hf_config,
    ),
    "beats": Layout(
        ("*patch_embedding.weight", "*layers.0.self_attn.grep_linear.weight"), beats.official, beats.sizes, style=TIED
    ),
    "cnn14": Layout(("*bn0.weight", "*conv_block1.conv1.weight"), cnn14.official, cnn14.sizes),
    "htsat": Layout(
        ("*layers.0.blocks.0.attn.relative_position_bias_table", "*bn0.running_mean"),
        htsat.official,
        htsat.sizes,
        whole="msclap",
    ),
    "htsat_hf": Layout(
        ("*layers.0.blocks.0.attention.self.relative_position_bias_table", "*batch_norm.running_mean"),
        htsat.hf,
        htsat.hf_sizes,
        settings=htsat.to_hf_config,
        whole="clap_hf",
    ),
    "msclap": Layout(
        ("*audio_encoder.base.htsat.bn0.weight", "*caption_encoder.base.h.0.attn.c_attn.weight"),
        clap.official,
        clap.sizes,
        listens=(ClapEncoderConfig, mats.clap_encoder),
    ),
    "clap_hf": Layout(
        ("*audio_model.audio_encoder.batch_norm.weight", "*text_model.encoder.layer.0.attention.self.query.weight"),
        clap.hf,
        clap.hf_sizes,
        settings=clap.to_hf_config,
    ),
    "whisper_openai": Layout(
        ("*blocks.0.attn.query.weight", "*conv1.weight"),
        whisper.openai,
        whisper.sizes,
        _WHISPER_HEADS,
        settings=whisper.to_hf_config,
        whole="whisper_seq2seq_openai",
    ),
    "whisper_hf": Layout(
        ("*layers.0.self_attn.k_proj.weight", "*conv1.weight"),
        whisper.hf,
        whisper.sizes,
        _WHISPER_HEADS,
        settings=whisper.to_hf_config,
        whole="whisper_seq2seq_hf",
    ),
    "whisper_ctranslate2": Layout(
        ("encoder/layer_0/self_attention/*", "encoder/conv1/weight"),
        whisper.ctranslate2,
        whisper.sizes,
        _WHISPER_HEADS,
        becomes="whisper_hf",
        whole="whisper_seq2seq_ctranslate2",
    ),
    "whisper_seq2seq_openai": Layout(
        ("*decoder.blocks.0.cross_attn.query.weight", "*conv1.weight"),
        whisper.openai_seq2seq,
        whisper.seq2seq_sizes,
        _WHISPER_HEADS,
        settings=whisper.seq2seq_to_hf_config,
    ),
    "whisper_seq2seq_hf": Layout(
        ("*decoder.layers.0.encoder_attn.k_proj.weight", "*conv1.weight"),
        whisper.hf_seq2seq,
        whisper.seq2seq_sizes,
        _WHISPER_HEADS,
        settings=whisper.seq2seq_to_hf_config,
    ),
    "whisper_seq2seq_ctranslate2": Layout(
        ("decoder/layer_0/attention/*", "encoder/conv1/weight"),
        whisper.ctranslate2_seq2seq,
        whisper.seq2seq_sizes,
        _WHISPER_HEADS,
        becomes="whisper_seq2seq_hf",
    ),
    "llama_gguf": Layout(("blk.0.attn_q.weight", "blk.0.ffn_gate.weight"), llama.gguf, llama.sizes, becomes="llama_hf"),
    "llama_hf": Layout(
        ("*layers.0.self_attn.q_proj.*weight", "*layers.0.mlp.gate_proj.*weight"),
        llama.hf,
        llama.sizes,
        settings=llama.to_hf_config,
    ),
    "gpt2_hf": Layout(
        ("*h.0.attn.c_attn.*weight", "*h.0.mlp.c_fc.*weight", "*wpe.weight"),
        gpt2.hf,
        gpt2.sizes,
        "n_head",
        settings=gpt2.to_hf_config,
    ),
    "bert_hf": Layout(
        ("*encoder.layer.0.attention.self.query.weight", "*embeddings.position_embeddings.weight"),
        bert.hf,
        bert.sizes,
        settings=bert.to_hf_config,
        begins=(QFormerConfig, qformer.from_bert),
    ),
    "alm": Layout(("*.kernel",), alm.own, alm.sizes),
    "llama_lora": Layout(("*layers.0.*_proj.lora_A.*weight",), llama.hf, llama.sizes, becomes="llama_hf"),
    "gpt2_lora": Layout(("*h.0.*c_*.lora_A.*weight",), gpt2.hf, gpt2.sizes, "n_head", becomes="gpt2_hf"),
}


def config_of(file: TensorFile, layout: str) -> Any:
    """The config of the part or system that a file of the layout `layout` holds (`LlamaConfig`, `AlmConfig`, ...).

    A `config.json` of this library beside the file holds it exactly. Otherwise a size that neither the tensors nor
    `convert.sizes.settings_of` the file tell is the config's default; `heads` is 0 where they do not tell it and the
    usual width of a head does not divide the model's.

    Raises:
        CheckpointError: `config.json` or `adapter_config.json` cannot be read.
    """
    kinds = {kind_of(name) for name in LAYOUTS} - {object}
    own = alm.config_beside(file, config_types(*kinds))
    return own if own is not None and isinstance(own, kind_of(layout)) else LAYOUTS[layout].sizes(file)


def kind_of(layout: str) -> type:
    """The class of config that a layout's table is made from; `object` where that is any."""
    return typing.get_type_hints(LAYOUTS[layout].table)["config"]


def heads_setting(config: Any) -> str:
    """What `config.json` calls the number of attention heads of such a part."""
    if isinstance(config, QFormerConfig):  # never alone in a file
        return "qformer_num_heads"
    return next(layout.heads for name, layout in LAYOUTS.items() if kind_of(name) is type(config))


def detect(keys: Iterable[str], whole: bool = False) -> str:
    """Name of the layout of a file with these keys.

    Args:
        whole: of a file that holds more than an encoder (Whisper's text decoder), the layout of all of it.

    Raises:
        CheckpointError: it is none of `LAYOUTS`.
    """
    keys = list(keys)

    def fits(layout: Layout) -> bool:
        return all(any(fnmatchcase(key, pattern) for key in keys) for pattern in layout.signature)

    for name, layout in LAYOUTS.items():
        if fits(layout):
            return layout.whole if whole and layout.whole and fits(LAYOUTS[layout.whole]) else name
    some = ", ".join(fold(keys)[:8]) or "no keys"
    raise CheckpointError(f"unknown checkpoint layout: {some}, ...; expected one of {', '.join(LAYOUTS)}")
