"""LTU-AS's shape at a size that a laptop trains: Whisper base, TLTR, SmolLM2-135M-Instruct with LoRA.

    alm quickstart                                                this config, scored and ready to be asked
    alm train ltu_as/smollm2_whisper_base --out runs/laptop       this config alone

Costs 22 minutes of processor time (measured with scoring, over two cores) and 3 GB, and 240 MB of downloads. The
encoder is frozen, so its features are computed once. Scenes are composed from the clips inside the package. The first
stage draws the aligner's tokens to the words for what is heard, without running the language model; the second trains
it together with LoRA to answer.
"""

from dataclasses import replace

from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.templates import CHATML
from alm_jax.layers.dense import Lora
from alm_jax.models.ltu_as import LAYOUT, ltu_as
from alm_jax.models.registry import CONFIGS
from alm_jax.train.config import Experiment, LoopConfig, Stage, Validation, Weights
from alm_jax.train.optim import OptimConfig

SCENES = 300
SCENE = SceneConfig(speed=(0.87, 1.15))  # most labels have one clip; at one speed it would be learnt by heart
KINDS = ("events", "first", "order", "presence", "count")


def get_config() -> Experiment:
    lora = Lora(rank=8, alpha=16.0, dropout=0.0)
    decoder = replace(CONFIGS["smollm2_135m"], lora=lora)

    def stage(
        name, steps: int, batch: int, kinds: tuple[str, ...], trainable: tuple[str, ...], optim, **options
    ) -> Stage:
        def rows(n: int, seed: int) -> DataSpec:
            return DataSpec((Scenes(n, seed, kinds=kinds, scene=SCENE),), batch_size=batch, buckets=(64,))

        held_out = Validation(rows(8, 1), every=50)
        return Stage(
            name, rows(SCENES, 0), trainable, optim, steps=steps, validation=held_out, features="cached", **options
        )

    fast = OptimConfig(learning_rate=4e-4, schedule="cosine", warmup_steps=10)
    # LoRA begins at zero and has far to go in few steps; the aligner has learnt already, and at such rates forgets it.
    mixed = OptimConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=5, lr_scale={"aligner.*": 0.01})

    return Experiment(
        name="ltu_as_smollm2_whisper_base",
        model=ltu_as(decoder, CONFIGS["whisper_base"]),
        layout=replace(LAYOUT, loss_on="answer"),
        template=CHATML,
        tokenizer="HuggingFaceTB/SmolLM2-135M-Instruct",
        weights=(
            Weights("encoder.*", "openai/whisper-base"),
            Weights("decoder.*", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ),
        stages=(
            stage("hear", 240, 8, ("events",), ("aligner.*",), fast, objective="heard_words"),
            stage("answer", 70, 8, KINDS, ("aligner.*", "*.lora_?"), mixed),
        ),
        loop=LoopConfig(checkpoint_every=50),
    )
