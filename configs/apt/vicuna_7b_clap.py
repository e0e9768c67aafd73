"""APT's ablation of its encoder (table X, "CLAP"): a clip is one embedding, projected into the language model.

    alm train apt/vicuna_7b_clap --out runs/apt_7b_clap

Trained on tagging and captioning, as all of the table was. It is the CLAP that the paper cites (MS-CLAP), frozen; the
paper does not say which of its versions, this is that of 2023, under `pretrained_mdls/msclap`.
"""

from dataclasses import replace
from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.train.config import Experiment, Weights

CLAP = "pretrained_mdls/msclap"


def get_config() -> Experiment:
    linear = load_config_file(Path(__file__).with_name("vicuna_7b_linear.py")).get_config()
    module = load_config_file(Path(__file__).with_name("vicuna_7b.py")).module
    encoder = ClapEncoderConfig()
    aligner = PooledLinearConfig(encoder.dim, linear.model.decoder.dim, (1, 1), time_pool=1, divisor=1.0)
    frontend = replace(encoder.clap.frontend, num_mels=encoder.clap.audio.mels)
    ratios = {name: ratio for name, ratio in module.TASKS.items() if name.endswith(("tagging", "captioning"))}
    stage = replace(
        linear.stages[0],
        data=module.rows(ratios, 80, (48, 80, 128, 256, 448), max_slots=1),
        trainable=module.LISTENING,
    )
    return replace(
        linear,
        name="apt_vicuna_7b_clap",
        model=replace(linear.model, frontend=frontend, encoder=encoder, aligner=aligner),
        stages=(stage,),
        weights=(Weights("encoder.*", CLAP),),
    )
