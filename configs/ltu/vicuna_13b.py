"""LTU 13B: the recipe of `ltu/vicuna_7b` over Vicuna 13B (official README, "LLaMA 13B Models").

    alm train ltu/vicuna_13b --out runs/ltu_13b
    alm plan ltu/vicuna_13b --topology v5e:4x4

About twice the cost of 7B, which the authors trained in about three days on four RTX A6000. Rows as for 7B; starting
weights (Vicuna 13B and CAV-MAE) under `pretrained_mdls/vicuna_ltu_13b`.
"""

from dataclasses import replace
from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.models.ltu import LORA
from alm_jax.models.registry import CONFIGS
from alm_jax.train.config import Experiment

PRETRAINED = "pretrained_mdls/vicuna_ltu_13b"


def get_config() -> Experiment:
    recipe = load_config_file(Path(__file__).with_name("vicuna_7b.py")).module
    decoder = replace(CONFIGS["vicuna_13b"], lora=LORA, remat="full")
    return recipe.experiment("ltu_vicuna_13b", decoder, PRETRAINED)
