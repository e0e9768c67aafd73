"""APT at toy size, from random weights, on composed scenes: for tests and for trying things.

    alm train apt/tiny --out runs/apt_tiny
    alm sweep apt/tiny --out runs/apt_ablations    without alignment, and with a linear aligner (table IX)

Costs about four minutes of processor time, most of it compiling, and 2 GB; nothing is downloaded. The curriculum of
the paper's table I: aligning audio and text without a language model, then one clip, then several. Without a
pretrained decoder the second stage trains it as well; in the third it is frozen, as APT's always is.
"""

from dataclasses import replace
from math import prod

from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.tasks.few_shot import FewShot
from alm_jax.data.tasks.reasoning import Reasoning
from alm_jax.data.tasks.registry import TaskConfig
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import PLAIN
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormerConfig
from alm_jax.models.apt import ALIGNMENT_LAYOUT, LAYOUT, apt
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer, Validation
from alm_jax.train.optim import OptimConfig

VOCABULARY = 512
SCENE = SceneConfig(seconds=4.0, event_seconds=1.5, sounds=(1, 2), repeats=(1, 2))
OPTIONS = TaskConfig(FewShot(ways=2, shots=1, episodes=48), Reasoning(pairs=24))
SINGLE = ("tagging", "captioning", "answering", "detection", "retrieval", "counting")
UNUSED = ("aligner.heads.*",)  # of alignment, in the stages after it


def tasks(n: int, seed: int, *names: str) -> Tasks:
    return Tasks(Scenes(n, seed, scene=SCENE), names, OPTIONS)


def stage(name: str, steps: int, rate: float, trainable: tuple[str, ...], *names: tuple[str, ...], **options) -> Stage:
    """Each group of tasks is a source, and each batch from one; the first has as many as the others together."""
    ratios = () if len(names) == 1 else (len(names) - 1.0, *[1.0] * (len(names) - 1))
    shared = {"batch_size": 8, "buckets": (128,), "mixing": "one_source_per_batch"}
    rows = DataSpec(tuple(tasks(64, 0, *group) for group in names), **shared, ratios=ratios)
    optim = OptimConfig(rate, "cosine", steps // 10, final_rate=rate / 10, epoch_steps=steps // 5)
    held_out = Validation(DataSpec((tasks(8, 1, *names[0]),), **shared), every=steps // 2)
    return Stage(name, rows, trainable, optim, steps=steps, validation=held_out, **options)


def get_config() -> Experiment:
    encoder = AudioMaeConfig(frames=384, mels=64, dim=64, heads=4, depth=2, mlp_dim=128)
    decoder = LlamaConfig(vocab_size=VOCABULARY, dim=64, depth=2, heads=4, kv_heads=4, mlp_dim=128)
    sizes = {"queries": 8, "hidden": 64, "depth": 2, "cross_every": 1, "heads": 4, "mlp_dim": 128, "dropout": 0.0}
    aligner = QFormerConfig(**sizes, vocab_size=VOCABULARY + 1)  # and [DEC]
    model = apt(decoder, encoder, aligner)
    alignment = {"decoder": None, "aligner.out_dim": None, "aligner.pretraining": PretrainingConfig(dim=32)}
    listening = ("encoder.*", "aligner.*", "indicators")
    return Experiment(
        name="apt_tiny",
        # An encoder that has heard nothing hears more in frames of about mean 0 and deviation 1.
        model=replace(model, frontend=replace(model.frontend, mean=-5.0, std=5.0)),
        layout=replace(LAYOUT, aligner_text_tokens=40),
        template=PLAIN,
        tokenizer=TrainTokenizer(VOCABULARY),
        aligner_tokenizer=TrainTokenizer(VOCABULARY),
        stages=(
            stage(
                *("align", 100, 2e-3, ("aligner.*",), ("tagging", "captioning")),
                objective="audio_text_alignment",
                model=alignment,
                layout=ALIGNMENT_LAYOUT,
            ),
            stage("single", 60, 3e-3, (*listening, "decoder.*"), SINGLE, drop=UNUSED),
            stage("multiple", 40, 1e-3, listening, SINGLE, ("few_shot",), ("nlar",)),
        ),
        loop=LoopConfig(checkpoint_every=20),
    )


def sweep():
    """Table IX and the alignment stage: the Q-Former with and without it, and LTU's aligner, which has none."""
    config = get_config()
    unaligned = tuple(replace(stage, drop=()) for stage in config.stages[1:])
    # As many tokens as the Q-Former's; patches run through the frequencies first (`apt/vicuna_7b_linear`).
    steps, queries = prod(config.model.encoder.grid), config.model.aligner.queries
    linear = PooledLinearConfig(config.model.encoder.dim, config.model.decoder.dim, (1, steps), steps // queries)
    yield {"name": "apt_tiny"}
    yield {"name": "apt_tiny_unaligned", "stages": unaligned}
    yield {
        "name": "apt_tiny_linear",
        "stages": unaligned,
        "model.aligner": linear,
        "layout.aligner_text_tokens": 0,
        "aligner_tokenizer": None,
    }
