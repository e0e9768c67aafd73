"""CLAP in the shape of LAION's `clap-htsat-unfused`: HTSAT, RoBERTa, projections of two layers (Wu et al. 2023).

    alm train clap/laion_htsat --out runs/laion_clap

Begins at the published weights under `pretrained_mdls/clap-htsat-unfused` and reads the rows of `clap/htsat_msclap`;
batch and rate are those of its paper. Not run by us.
"""

from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.models.clap import LaionClapConfig
from alm_jax.train.config import Experiment, Weights

CLAP = "pretrained_mdls/clap-htsat-unfused"


def get_config() -> Experiment:
    recipe = load_config_file(Path(__file__).with_name("htsat_msclap.py")).module
    stage = recipe.pair(batch_size=2304, micro_batch=576)
    return recipe.experiment("clap_laion_htsat", LaionClapConfig(), stage, CLAP, Weights("*", CLAP))
