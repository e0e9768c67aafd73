"""LTU at toy size, from random weights, on composed scenes: for tests and for trying things.

    alm train ltu/tiny --out runs/tiny

Costs under a minute and 1 GB on two cores, nothing is downloaded. Without a pretrained decoder the first stage trains
it together with the aligner; the second is LTU's own: encoder, aligner and LoRA over the decoder.
"""

from dataclasses import replace

from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import LAYOUT, LORA, ltu
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer, Validation
from alm_jax.train.optim import OptimConfig

VOCABULARY = 512


def get_config() -> Experiment:
    encoder = CavMaeConfig(frames=384, dim=64, heads=4, depth=2)
    decoder = LlamaConfig(vocab_size=VOCABULARY, dim=64, depth=2, heads=4, kv_heads=4, mlp_dim=128, lora=LORA)
    scene = SceneConfig(seconds=4.0, event_seconds=1.5, sounds=(1, 2), repeats=(1, 2))
    kinds = ("events", "count", "presence")

    def rows(n: int, seed: int) -> DataSpec:
        return DataSpec((Scenes(n, seed, scene=scene, kinds=kinds),), batch_size=8, buckets=(112,))

    def stage(name: str, steps: int, rate: float, trainable: tuple[str, ...], **options) -> Stage:
        optim = OptimConfig(learning_rate=rate, warmup_steps=steps // 10)
        validation = Validation(rows(8, seed=1), every=steps // 2)
        return Stage(
            name, rows(64, seed=0), trainable, optim, steps=steps, loss_group=4, validation=validation, **options
        )

    return Experiment(
        name="ltu_tiny",
        model=ltu(decoder, encoder),
        # A decoder that has read nothing learns answers sooner where they alone count.
        layout=replace(LAYOUT, loss_on="answer"),
        tokenizer=TrainTokenizer(VOCABULARY),
        stages=(
            stage("read", 60, 3e-3, ("aligner.*", "decoder.*"), model={"decoder.lora": None}),
            stage("all", 40, 1e-3, ("encoder.*", "aligner.*", "*.lora_?")),
        ),
        loop=LoopConfig(checkpoint_every=20),
    )
