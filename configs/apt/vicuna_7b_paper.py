"""APT 7B as the paper has it, where that differs from the published code (`apt/vicuna_7b`; Liang et al. 2023).

    alm train apt/vicuna_7b_paper --out runs/apt_7b_paper

The curriculum of table I in three stages, with counting and NLAR; features of the penultimate block at Audio-MAE's own
16 kHz and scale; cross-attention in every block; a frozen encoder; alignment on AudioSet and WavCaps alone; Adam with
2,000 warm-up steps and half a cosine. The paper tells no numbers of steps: those are the published code's, divided.
"""

from dataclasses import replace
from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.models.apt import AUDIO_MAE_FRONTEND
from alm_jax.train.config import Experiment
from alm_jax.train.optim import OptimConfig


def get_config() -> Experiment:
    recipe = load_config_file(Path(__file__).with_name("vicuna_7b.py")).module
    model = recipe.model()
    model = replace(
        model,
        frontend=AUDIO_MAE_FRONTEND,
        taps=(model.encoder.depth - 1,),
        aligner=replace(model.aligner, cross_every=1),
    )
    adam = OptimConfig(1e-4, "cosine", 2000, clip_norm=None)
    pairs = {name: recipe.PAIRS[name] for name in ("audioset", "wavcaps")}
    several = {name: ratio for name, ratio in recipe.TASKS.items() if name == "audioset_few_shot"} | {"nlar": 0.1}
    single = {name: ratio for name, ratio in recipe.TASKS.items() if name not in several} | {"audioset_counting": 0.45}
    return recipe.experiment(
        "apt_vicuna_7b_paper",
        model,
        (
            recipe.align(pairs, optim=adam),
            recipe.language("single", single, recipe.LISTENING, adam, steps=15_625),
            recipe.language("several", single | several, recipe.LISTENING, adam, steps=15_625),
        ),
    )
