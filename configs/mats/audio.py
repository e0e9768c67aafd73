"""MATS-Audio: MATS-LLaMA supervised by audio (Wang et al. 2025, section 4.1 and table S6).

    alm train mats/audio --out runs/mats_audio

As `mats/vicuna_7b`, with clips in the place of their captions and no noise; without the sets that it is only tested on.
"""

from dataclasses import replace
from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.data.tasks.audiotia import DATA_SETS
from alm_jax.train.config import Experiment


def get_config() -> Experiment:
    recipe = load_config_file(Path(__file__).with_name("vicuna_7b.py"))
    base = recipe.module.get_config("audio", tuple(name for name, each in DATA_SETS.items() if each.audio))
    aligner = replace(base.model.aligner, noise_variance=0.0)
    encoder = replace(base.model.encoder, towers="audio")
    model = replace(base.model, aligner=aligner, encoder=encoder, santa=None)
    return replace(base, name="mats_audio", model=model, encoder_tokenizer=None)
