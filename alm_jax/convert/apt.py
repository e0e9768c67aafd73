"""APT checkpoints: Audio-MAE, Q-Former, projection and `<AUDIO>` vector, and LLaMA where it is there (official
`lam_qformer.py` for the alignment stage, `lam_vicuna_instruct.py` for the others).

Official checkpoints leave out what was frozen: the alignment stage's the encoder, the others' LLaMA and the encoder's
fixed positions. Those come from their own checkpoints.
"""

from __future__ import annotations

from dataclasses import replace

from alm_jax.convert import audio_mae, llama, qformer
from alm_jax.convert.formats import Below, TensorFile
from alm_jax.convert.rules import Rearrange, Rule, Table
from alm_jax.models.alm import AlmConfig
from alm_jax.models.apt import VOCABULARY, apt
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.registry import CONFIGS

_ENCODER, _DECODER, _INDICATOR = "audio_encoder.model.", "llm_model.", "audio_indicator_token"


def official(config: AlmConfig) -> Table:
    """The whole model; keys of parts that the config does not have are another model's."""
    if config.encoder is None:
        encoder = Table(ignored=(_ENCODER + "*",))
    else:
        encoder = audio_mae.official(config.encoder).under("encoder.", _ENCODER)
    aligner = qformer.official(config.aligner).under("aligner.")
    if config.decoder is None:
        return encoder + aligner + Table(ignored=(_DECODER + "*", _INDICATOR, "llm_proj.*"))
    indicator = Rule("indicators", _INDICATOR, Rearrange("1 n d -> n d"))
    return encoder + aligner + Table((indicator,)) + llama.hf(config.decoder).under("decoder.", _DECODER)


def sizes(file: TensorFile) -> AlmConfig:
    """Sizes of all parts, read off a file; a LLaMA that is not in it is the Vicuna of the projection's width."""
    aligner = qformer.sizes(file)
    return apt(_decoder(file, aligner.out_dim), audio_mae.sizes(Below(file, _ENCODER)), aligner)


def _decoder(file: TensorFile, dim: int | None) -> LlamaConfig | None:
    if dim is None:
        return None
    inside = Below(file, _DECODER)
    if any(key.endswith("embed_tokens.weight") for key in inside.keys()):
        return llama.sizes(inside)
    widths = {c.dim: c for c in CONFIGS.values() if isinstance(c, LlamaConfig)}
    return replace(widths.get(dim, LlamaConfig(dim=dim)), vocab_size=VOCABULARY)
