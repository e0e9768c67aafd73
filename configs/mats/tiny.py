"""MATS at toy size, from random weights, on composed scenes: for tests and for trying things.

    alm train mats/tiny --out runs/mats_tiny
    alm sweep mats/tiny --out runs/mats_ablations    Santa and what is left of it (table 4)

Costs about a minute of processor time and 1 GB; nothing is downloaded. It trains on the scenes' captions and hears no
sound. Its CLAP is random, so that clips are not where their captions are: what it answers about sound is guessed, and
`mats/smollm2` is the smallest that hears. Without a pretrained decoder the first stage trains it together with the
mapper; the second is MATS's own: mapper and LoRA.
"""

from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.templates import MATS
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.clap import ClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.mats import ABLATIONS, LAYOUT, LORA, mats
from alm_jax.models.santa import SantaConfig
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer, Validation
from alm_jax.train.optim import OptimConfig

VOCABULARY = 512


def get_config() -> Experiment:
    clap = ClapConfig(
        audio=HtsatConfig(embed_dim=8, depths=(1, 2), heads=(1, 2)),
        text=Gpt2Config(VOCABULARY, dim=64, depth=2, heads=4, mlp_dim=128, positions=80),
        dim=64,
    )
    decoder = LlamaConfig(VOCABULARY, dim=64, depth=2, heads=4, kv_heads=4, mlp_dim=128, lora=LORA)
    aligner = MapperConfig(clip_tokens=4, tokens=4, width=64, depth=2)
    santa = SantaConfig(memory=64, clusters=4, neighbours=8)
    scene = SceneConfig(seconds=4.0, event_seconds=1.5, sounds=(1, 2), repeats=(1, 2))

    def rows(n: int, seed: int) -> DataSpec:
        source = Scenes(n, seed, scene=scene, kinds=("events", "count", "presence"))
        return DataSpec((source,), batch_size=8, buckets=(96,))

    def stage(name: str, steps: int, rate: float, trainable: tuple[str, ...], **options) -> Stage:
        optim = OptimConfig(rate, "cosine", steps // 10)
        held_out = Validation(rows(8, seed=1), every=steps // 2)
        shared = {"hears": "text", "features": "cached", "validation": held_out}
        return Stage(name, rows(64, seed=0), trainable, optim, steps=steps, **shared, **options)

    return Experiment(
        name="mats_tiny",
        model=mats(decoder, ClapEncoderConfig(clap, "both"), aligner, santa),
        layout=LAYOUT,
        template=MATS,
        tokenizer=TrainTokenizer(VOCABULARY),
        encoder_tokenizer=TrainTokenizer(VOCABULARY),
        stages=(
            stage("read", 80, 3e-3, ("aligner.*", "decoder.*"), model={"decoder.lora": None}),
            stage("text", 60, 1e-3, ("aligner.*", "*.lora_?")),
        ),
        loop=LoopConfig(checkpoint_every=20),
    )


def sweep():
    """Table 4: Santa without each of its parts, and its two rivals. Ask the runs with `--memory`.

    Only two of them are trained otherwise (without noise); the others are one training, asked in another way, which
    `alm ask --santa` does with a single run.
    """
    for name, overrides in ABLATIONS.items():
        yield {"name": f"mats_tiny_{name}", **overrides}
