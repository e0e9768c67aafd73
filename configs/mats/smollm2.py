"""MATS at a size for two cores: SmolLM2-135M-Instruct and a small CLAP that was trained here (`clap/whisper_minilm`).

    alm train clap/whisper_minilm --out runs/clap
    alm train mats/smollm2 --out runs/mats
    alm sweep mats/smollm2 --out runs/mats_compared    without noise, and on sound (MATS-Audio)

It trains on captions of scenes that are composed from the clips inside the package, and hears no sound. Another CLAP
takes its place by `weights.0.source` (a run), or by `model.encoder.clap` with weights of its own. The first stage draws
the mapper's tokens to the words for what is heard, without running the language model; the second trains mapper and
LoRA to answer. As many tokens are learnt as a short answer has words, by a mapper a hundredth of MATS's size.
"""

from dataclasses import replace
from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.rows import Hears
from alm_jax.data.templates import CHATML
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.clap_training import NAMES
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.mats import LAYOUT, LORA, mats
from alm_jax.models.registry import CONFIGS
from alm_jax.models.santa import PAPER
from alm_jax.train.config import Experiment, LoopConfig, Stage, Validation, Weights
from alm_jax.train.optim import OptimConfig

CLAP = "runs/clap"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
KINDS = ("events", "caption", "first", "order", "presence", "count")


def get_config(hears: Hears = "text") -> Experiment:
    recipe = load_config_file(Path(__file__).parents[1] / "clap" / "whisper_minilm.py").module

    def stage(name: str, steps: int, batch_size: int, kinds: tuple[str, ...], trainable, optim, **options) -> Stage:
        def rows(n: int, seed: int) -> DataSpec:
            return DataSpec((Scenes(n, seed, kinds=kinds, scene=recipe.SCENE),), batch_size, buckets=(64, 96))

        shared = {"hears": hears, "features": "cached", "validation": Validation(rows(8, 1), every=50)}
        return Stage(name, rows(recipe.SCENES, 0), trainable, optim, steps=steps, **shared, **options)

    decoder = replace(CONFIGS["smollm2_135m"], lora=LORA)
    aligner = MapperConfig(clip_tokens=8, tokens=8, width=256, depth=4, noise_variance=0.015 if hears == "text" else 0)
    fast = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20)
    mixed = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=10, lr_scale={"aligner.*": 0.01})
    return Experiment(
        name="mats_smollm2",
        model=mats(decoder, ClapEncoderConfig(recipe.clap(), "both"), aligner, replace(PAPER, clusters=20)),
        layout=LAYOUT,
        template=CHATML,
        tokenizer=SMOLLM2,
        encoder_tokenizer=recipe.MINILM,
        weights=(
            Weights("encoder.*", CLAP, names=NAMES),
            Weights("encoder.audio.encoder.*", "openai/whisper-base"),
            Weights("encoder.text.encoder.*", recipe.MINILM),
            Weights("decoder.*", SMOLLM2),
        ),
        stages=(
            stage("words", 300, 16, ("events",), ("aligner.*",), fast, objective="heard_words"),
            stage("answer", 80, 8, KINDS, ("aligner.*", "*.lora_?"), mixed),
        ),
        loop=LoopConfig(checkpoint_every=50),
    )


def sweep():
    """What a comparison of ways over the gap trains: noise and Santa are one training, asked in two ways."""
    yield {"name": "mats_smollm2"}
    yield {"name": "mats_smollm2_no_noise", "model.aligner.noise_variance": 0.0, "model.santa.noise_variance": 0.0}
    audio = get_config("audio")
    yield {"name": "mats_smollm2_audio", "stages": audio.stages, "model.aligner": audio.model.aligner}
