"""MATS: an audio-language model trained on text alone (Wang et al. 2025): MS-CLAP, a mapper, LLaMA or GPT-2 with LoRA,
and Santa, which draws a clip's embedding towards those of texts like it.

Its parts and its layout as the published code has them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alm_jax.core.sequence import Layout
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.alm import AlmConfig, DecoderConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.santa import SantaConfig

LORA = Lora(rank=8, alpha=32.0, dropout=0.1, targets=("attn.q", "attn.v"))
GPT2_LORA = replace(LORA, targets=("attn.qkv",))  # of the paper alone; its code was not published

# `[bos]"USER: <Speech>" audio "</Speech> ... ASSISTANT:" answer`: each is tokenized by itself, an answer cut to 150.
LAYOUT = Layout(
    bos="first",
    max_text_tokens=2048,
    loss_on="answer",
    penalize_prompt=False,
    apart=True,
    max_answer_tokens=150,
)

VOCABULARY = 32001  # Vicuna's 32000 ids and `[PAD]`


def mats(
    decoder: DecoderConfig = LlamaConfig(vocab_size=VOCABULARY, lora=LORA),
    encoder: ClapEncoderConfig = ClapEncoderConfig(towers="both"),
    aligner: MapperConfig = MapperConfig(),
    santa: SantaConfig | None = SantaConfig(),
) -> AlmConfig:
    """MATS over parts of any size; the defaults are the published 7B model.

    It is trained on texts, which CLAP's text tower reads (`Stage.hears`), and hears clips through the audio tower.
    """
    return AlmConfig(
        frontend=replace(encoder.clap.frontend, num_mels=encoder.clap.audio.mels),
        encoder=encoder,
        aligner=replace(aligner, dim=encoder.dim, out_dim=decoder.dim),
        decoder=decoder,
        santa=santa,
    )


def mats_gpt2(decoder: Gpt2Config = Gpt2Config(lora=GPT2_LORA)) -> AlmConfig:
    """MATS-GPT2."""
    return mats(decoder)


_NO_NOISE = {"model.aligner.noise_variance": 0.0, "model.santa.noise_variance": 0.0}

ABLATIONS: dict[str, dict[str, Any]] = {
    "santa": {},
    "no_kmeans": {"model.santa.clusters": 0},
    "no_memory": {"model.santa": None},
    "no_audio": {"model.santa.share": 1.0},
    "no_noise": _NO_NOISE,
    "memory_based": {**_NO_NOISE, "model.santa.clusters": 0, "model.santa.neighbours": 5172, "model.santa.share": 1.0},
    "noise_based": {"model.santa": None},
}
"""Table 4 as overrides of an experiment: Santa without k-means, memory bank, audio embedding or Gaussian noise, and
its rivals. The memory-based one projects a clip onto all texts (DRCap, Li et al. 2024); the noise-based one
(NoAudioCaptioning, Deshmukh et al. 2024) is what is left without a memory, and scores the same."""
