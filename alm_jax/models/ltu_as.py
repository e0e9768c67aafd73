"""LTU-AS: joint audio and speech understanding (Gong et al. 2023): all Whisper layers, TLTR, Vicuna with LoRA."""

from __future__ import annotations

from alm_jax.audio.frontend import WhisperLogMel
from alm_jax.core.sequence import Layout
from alm_jax.models.aligners.tltr import TltrConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import LAYOUT as LTU_LAYOUT
from alm_jax.models.ltu import LORA
from alm_jax.models.registry import CONFIGS

LAYOUT: Layout = LTU_LAYOUT
FRAMES = 1000  # 10 s of Whisper log-mel frames
POOL = 20  # encoder steps averaged into one token of 0.4 s


def ltu_as(
    decoder: LlamaConfig = LlamaConfig(lora=LORA), encoder: WhisperConfig = CONFIGS["whisper_large_v1"]
) -> AlmConfig:
    """LTU-AS over a decoder and a Whisper encoder of any size; the defaults are the published 7B model.

    Every block's output is tapped; the input of the first (index 0 of the official features) is not used.
    """
    return AlmConfig(
        frontend=WhisperLogMel(frames=FRAMES, num_mels=encoder.mels, padding="mel"),
        encoder=encoder,
        aligner=TltrConfig(
            dim=encoder.dim, out_dim=decoder.dim, layers=encoder.depth, tokens=FRAMES // 2 // POOL, layer_heads=8
        ),
        decoder=decoder,
        taps=tuple(range(1, encoder.depth + 1)),
        pool=POOL,
    )
