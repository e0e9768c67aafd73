"""InstructBLIP and BLIP-2 over a LLaMA: image encoder, Q-Former, projection and LLaMA. They are what APT-BLIP-2 sees
with; its other parts are an APT's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alm_jax.convert import llama, qformer, vit
from alm_jax.convert.formats import Below, TensorFile
from alm_jax.convert.rules import Table
from alm_jax.convert.sizes import number, settings_of
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.apt_blip2 import IMAGE_ENCODER, VOCABULARY, blip
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.vit import VitConfig
from alm_jax.models.registry import CONFIGS

_ENCODER, _ALIGNER, _DECODER = "vision.encoder.", "vision.aligner.", "decoder."


def hf(config: AlmConfig) -> Table:
    """`InstructBlipForConditionalGeneration` and `Blip2ForConditionalGeneration` of `transformers`, over a LLaMA."""
    seen = vit.hf(config.vision.encoder).under(_ENCODER, "vision_model.")
    asked = qformer.hf(config.vision.aligner).under(_ALIGNER)
    return seen + asked + llama.hf(config.decoder).under(_DECODER, "language_model.")


def official(config: AlmConfig) -> Table:
    """LAVIS's: what it trained (`instruct_blip_vicuna7b_trimmed.pth`), and all of it where a file holds all."""
    seen = vit.official(config.vision.encoder).under(_ENCODER, "visual_encoder.")
    asked = qformer.official(config.vision.aligner, norm="ln_vision").under(_ALIGNER)
    return seen + asked + llama.hf(config.decoder).under(_DECODER, "llm_model.")


def hf_sizes(file: TensorFile) -> AlmConfig:
    """Sizes that the sections of `config.json` tell, or those read off a file of `transformers`.

    Raises:
        CheckpointError: `config.json` tells what has no counterpart, such as another language model.
    """
    eye = replace(vit.sizes(Below(file, "vision_model.", "vision_config")), norm=False)  # which is the aligner's
    asked, told = qformer.sizes(file), settings_of(file).get("qformer_config", {})
    heads = number(file, told, "num_attention_heads", int, asked.heads)
    asked = replace(asked, heads=heads, feature_norm_eps=eye.norm_eps)
    return blip(llama.sizes(Below(file, "language_model.", "text_config")), eye, asked)


def sizes(file: TensorFile) -> AlmConfig:
    """Sizes read off a file of LAVIS; an image encoder or a LLaMA that is not in it is the published one."""
    seen, read = Below(file, "visual_encoder."), Below(file, "llm_model.")
    asked = qformer.sizes(file)
    decoder = llama.sizes(read) if list(read.keys()) else _published(asked)
    return blip(decoder, _eye(seen), asked)


def _eye(file: TensorFile) -> VitConfig:
    return replace(vit.sizes(file), norm=False) if list(file.keys()) else IMAGE_ENCODER


def _published(aligner: QFormerConfig) -> LlamaConfig:
    """The LLaMA of the projection's width, with InstructBLIP's vocabulary."""
    llamas = (config for config in CONFIGS.values() if isinstance(config, LlamaConfig))
    found = next((config for config in llamas if config.dim == aligner.out_dim), LlamaConfig(dim=aligner.out_dim))
    return replace(found, vocab_size=VOCABULARY)


def to_hf_config(config: AlmConfig) -> dict[str, Any]:
    """The content of `config.json` (`InstructBlipConfig`, or `Blip2Config` if the Q-Former reads no text)."""
    asked = config.vision.aligner
    name, kind = ("InstructBlip", "instructblip") if asked.reads_text else ("Blip2", "blip-2")
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "num_query_tokens": asked.queries,
        "vision_config": vit.to_hf_config(config.vision.encoder)
        | {"model_type": f"{kind.replace('-', '_')}_vision_model"},
        "qformer_config": qformer.to_hf_config(asked),
        "text_config": llama.to_hf_config(config.decoder),
    }
