"""LTU-AS checkpoints: LLaMA, TLTR, projection and LoRA in one state dict (official `ltu_as` `modeling_llama.py`)."""

from __future__ import annotations

from alm_jax.convert import llama
from alm_jax.convert.formats import TensorFile
from alm_jax.convert.ltu import projection
from alm_jax.convert.rules import Table
from alm_jax.convert.sizes import shape_of
from alm_jax.convert.whisper import openai_block
from alm_jax.models.alm import AlmConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu_as import ltu_as
from alm_jax.models.registry import CONFIGS


def official(config: AlmConfig) -> Table:
    """All but Whisper, whose encoder has its own checkpoint: what is called the audio encoder there is the aligner."""
    return llama.hf(config.decoder).under("decoder.") + aligner()


def aligner() -> Table:
    """TLTR and its projection."""
    time = openai_block("aligner.time.", "model.audio_encoder.time_tr.")
    layer = openai_block("aligner.layer.", "model.audio_encoder.layer_tr.")
    return Table((*time, *layer)) + projection()


def sizes(file: TensorFile) -> AlmConfig:
    """Sizes of the decoder, read off a file; the encoder is the first published Whisper of the aligner's width."""
    width = (shape_of(file, r"audio_proj\.1\.weight$", 2) or (0, 0))[1]
    published = (c for c in CONFIGS.values() if isinstance(c, WhisperConfig) and c.dim == width)
    return ltu_as(llama.sizes(file), next(published, CONFIGS["whisper_large_v1"]))
