"""What APT-BLIP-2 has of InstructBLIP: image encoder, Q-Former, projection and LLaMA. Its other parts are an APT's."""

from __future__ import annotations

from alm_jax.convert import llama, qformer, vit
from alm_jax.convert.rules import Table
from alm_jax.models.alm import AlmConfig

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
