"""APT-BLIP-2 (Liang et al. 2023, figure 3): InstructBLIP, whose Vicuna also hears through APT's encoder and aligner
(official `blip2_vicuna_instruct.py`, `av_generate*`). Nothing in it is trained together."""

from __future__ import annotations

from dataclasses import replace

from alm_jax.core.sequence import Audio, Image, Part, Text
from alm_jax.models import apt
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.vit import VitConfig
from alm_jax.models.registry import CONFIGS
from alm_jax.models.vision import VisionConfig
from alm_jax.vision.frontend import ImageFrontend

VOCABULARY = 32001  # Vicuna's ids and InstructBLIP's `[PAD]`

# `X_image <BOS> <AUDIO> X_audio X_text`: the paper's, `av_generate_new` in the code.
LAYOUT = replace(apt.LAYOUT, bos="after_images", max_prompt_tokens=None)
# Of the code's `av_generate`: `X_image <AUDIO> X_audio <BOS> X_text`.
BOS_BEFORE_TEXT = replace(LAYOUT, bos="after_audio")

# The norm of the image's features (`ln_vision`) is the aligner's.
IMAGE_ALIGNER = CONFIGS["instructblip_qformer"]
IMAGE_ENCODER = replace(CONFIGS["eva_vit_g"], norm=False)


def apt_blip2(
    decoder: LlamaConfig = LlamaConfig(vocab_size=VOCABULARY),
    encoder: AudioMaeConfig = AudioMaeConfig(classes=527),
    aligner: QFormerConfig = QFormerConfig(),
    image_encoder: VitConfig = IMAGE_ENCODER,
    image_aligner: QFormerConfig = IMAGE_ALIGNER,
) -> AlmConfig:
    """APT-BLIP-2 over parts of any size; the defaults are the published 7B model."""
    return replace(apt.apt(decoder, encoder, aligner), vision=blip(decoder, image_encoder, image_aligner).vision)


def blip(
    decoder: LlamaConfig = LlamaConfig(vocab_size=VOCABULARY),
    image_encoder: VitConfig = IMAGE_ENCODER,
    image_aligner: QFormerConfig = IMAGE_ALIGNER,
) -> AlmConfig:
    """InstructBLIP, or BLIP-2 if the aligner reads no text: what sees of APT-BLIP-2, without ears."""
    vision = VisionConfig(
        frontend=ImageFrontend(image_encoder.size),
        encoder=image_encoder,
        aligner=replace(image_aligner, dim=image_encoder.dim, out_dim=decoder.dim, steps=image_encoder.steps),
    )
    return AlmConfig(None, None, None, decoder, vision=vision)


def parts(question: str, *, frames: int = 1, clips: int = 1, image_prompt: str | None = None) -> list[Part]:
    """A question about the frames of a video and its sound.

    Args:
        image_prompt: what the image aligner reads in the place of the question (the paper's fixed t', the `prompt` of
            the code's `av_generate_sep_prompt`); the audio aligner always reads the question.
    """
    images = [Image(frame, image_prompt) for frame in range(frames)]
    return [*images, *(Audio(clip) for clip in range(clips)), Text(question)]
