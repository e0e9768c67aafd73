"""LTU: Listen, Think, and Understand (Gong et al. 2023): CAV-MAE, pooling and projection, Vicuna with LoRA.

Its parts and its layout as the published code has them; where the paper differs it is said beside the value.
"""

from __future__ import annotations

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.core.sequence import Layout
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig

# Rank 8, alpha 16 on query and value (the paper's text says key and query).
LORA = Lora(rank=8, alpha=16.0, dropout=0.05, targets=("attn.q", "attn.v"))

# `[audio][bos][text]`; loss on the instruction too; at most 108 text tokens.
LAYOUT = Layout(bos="after_audio", max_text_tokens=108, loss_on="all", penalize_prompt=True)


def ltu(decoder: LlamaConfig = LlamaConfig(lora=LORA), encoder: CavMaeConfig = CavMaeConfig()) -> AlmConfig:
    """LTU over a decoder and an encoder of any size; the defaults are the published 7B model."""
    return AlmConfig(
        frontend=KaldiFbank(frames=encoder.frames, num_mels=encoder.mels),
        encoder=encoder,
        aligner=PooledLinearConfig(dim=encoder.dim, out_dim=decoder.dim, grid=encoder.grid),
        decoder=decoder,
    )
