"""MATS-GPT2 as the paper has it; its code was not published (Wang et al. 2025, section 4.1).

    alm train mats/gpt2 --out runs/mats_gpt2

The authors took about 25 hours on two A100. Rows and CLAP are those of `mats/vicuna_7b`; LoRA is on GPT-2's one
projection of queries, keys and values, with the paper's rank 8 and scaling 4.
"""

from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.core.mesh import MeshConfig
from alm_jax.models.mats import mats_gpt2
from alm_jax.train.config import Experiment


def get_config() -> Experiment:
    recipe = load_config_file(Path(__file__).with_name("vicuna_7b.py")).module
    stage = recipe.stage(recipe.rows(128), recipe.optim(5e-5, "linear", 2000), 64)
    return recipe.experiment("mats_gpt2", mats_gpt2(), stage, recipe.GPT2, mesh=MeshConfig(data=-1))
