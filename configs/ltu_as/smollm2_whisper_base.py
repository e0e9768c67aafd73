"""LTU-AS's shape at a size that a laptop trains: Whisper base, TLTR, SmolLM2-135M-Instruct with LoRA.

    alm quickstart                                                this config, scored and ready to be asked
    alm train ltu_as/smollm2_whisper_base --out runs/laptop       this config alone

Costs about ten minutes and 3 GB on two cores, and 240 MB of downloaded weights. The encoder is frozen, so its features
are computed once. Scenes are composed from the clips inside the package. The first stage teaches the aligner to name
sounds; the second trains it together with LoRA on all kinds of question.
"""

from dataclasses import replace

from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.layers.dense import Lora
from alm_jax.models.ltu_as import LAYOUT, ltu_as
from alm_jax.models.registry import CONFIGS
from alm_jax.train.config import Experiment, LoopConfig, Stage, Validation, Weights
from alm_jax.train.optim import OptimConfig

SCENES = 400
NAMING = ("events", "first", "presence")
KINDS = ("events", "first", "order", "presence", "count")


def get_config() -> Experiment:
    lora = Lora(rank=8, alpha=16.0, dropout=0.0)
    decoder = replace(CONFIGS["smollm2_135m"], lora=lora)

    def rows(n: int, seed: int, kinds: tuple[str, ...]) -> DataSpec:
        return DataSpec((Scenes(n, seed, kinds=kinds),), batch_size=8, buckets=(64,))

    def stage(name: str, steps: int, rate: float, kinds: tuple[str, ...], trainable: tuple[str, ...]) -> Stage:
        return Stage(
            name,
            rows(SCENES, 0, kinds),
            trainable,
            OptimConfig(learning_rate=rate, schedule="cosine", warmup_steps=10),
            steps=steps,
            validation=Validation(rows(6, 1, kinds), every=50),
            features="cached",
        )

    return Experiment(
        name="ltu_as_smollm2_whisper_base",
        model=ltu_as(decoder, CONFIGS["whisper_base"]),
        layout=replace(LAYOUT, loss_on="answer"),
        tokenizer="HuggingFaceTB/SmolLM2-135M-Instruct",
        weights=(
            Weights("encoder.*", "openai/whisper-base"),
            Weights("decoder.*", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ),
        stages=(
            stage("align", 60, 1e-3, NAMING, ("aligner.*",)),
            stage("all", 120, 1e-3, KINDS, ("aligner.*", "*.lora_?")),
        ),
        loop=LoopConfig(checkpoint_every=50),
    )
