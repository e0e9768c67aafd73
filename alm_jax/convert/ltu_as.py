"""LTU-AS checkpoints: LLaMA, TLTR, projection and LoRA in one state dict (official `ltu_as` `modeling_llama.py`)."""

from __future__ import annotations

from alm_jax.convert import llama
from alm_jax.convert.ltu import projection
from alm_jax.convert.rules import Table
from alm_jax.convert.whisper import openai_block
from alm_jax.models.alm import AlmConfig


def official(config: AlmConfig) -> Table:
    """All but Whisper, whose encoder has its own checkpoint: what is called the audio encoder there is the aligner."""
    return llama.hf(config.decoder).under("decoder.") + aligner()


def aligner() -> Table:
    """TLTR and its projection."""
    time = openai_block("aligner.time.", "model.audio_encoder.time_tr.")
    layer = openai_block("aligner.layer.", "model.audio_encoder.layer_tr.")
    return Table((*time, *layer)) + projection()
