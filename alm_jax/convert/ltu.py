"""LTU checkpoints: LLaMA, CAV-MAE, projection and LoRA in one state dict (official `modeling_llama.py`)."""

from __future__ import annotations

from alm_jax.convert import cav_mae, llama
from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, VECTOR, Rule, Table
from alm_jax.models.alm import AlmConfig
from alm_jax.models.ltu import ltu


def official(config: AlmConfig) -> Table:
    """The whole model; the published `ltu_ori_paper.bin` holds its encoder, projection and LoRA (`names.PUBLISHED`)."""
    return llama.hf(config.decoder).under("decoder.") + audio(config)


def audio(config: AlmConfig) -> Table:
    """The encoder and the projection; with `config.encoder` None, the encoder's keys are another model's."""
    if config.encoder is None:
        encoder = Table(ignored=("model.audio_encoder.*",))
    else:
        encoder = cav_mae.official(config.encoder).under("encoder.", "model.audio_encoder.")
    return encoder + projection()


def projection() -> Table:
    """The linear layer after the LayerNorm without parameters; LTU and LTU-AS."""
    weight = Rule("aligner.proj.kernel", "model.audio_proj.1.weight", LINEAR)
    return Table((weight, Rule("aligner.proj.bias", "model.audio_proj.1.bias", VECTOR)))


def sizes(file: TensorFile) -> AlmConfig:
    """Sizes of both parts, read off a file; the rest as published."""
    return ltu(llama.sizes(file), cav_mae.sizes(file))
