"""APT 7B as published: Audio-MAE, a Q-Former, a frozen Vicuna (Liang et al. 2023; `pretrain_stage{1,2}.yaml`).

    alm train apt/vicuna_7b --out runs/apt_7b
    alm plan apt/vicuna_7b --topology v5e:4x4

As in the published code one stage of alignment is followed by one over all tasks, each batch from one data set; the
paper's curriculum is `apt/vicuna_7b_paper`. The authors do not say how long it took. It reads rows that `alm tasks`
makes under `data/apt` (the authors' sounds and splits are not published), Audio-MAE fine-tuned on AudioSet and Vicuna
1.1 under `pretrained_mdls`. The Q-Former begins as BERT-mini, but for what reads audio.
"""

from dataclasses import replace

from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import MIXED
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import PLAIN
from alm_jax.models.aligners.qformer import PretrainingConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.apt import ALIGNMENT_LAYOUT, LAYOUT, apt
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.train.config import PREVIOUS, Experiment, LoopConfig, Stage, Weights
from alm_jax.train.optim import OptimConfig

ROWS = "data/apt"
AUDIO_MAE, VICUNA = "pretrained_mdls/audio_mae", "pretrained_mdls/vicuna_7b_v1.1"
BERT = "prajjwal1/bert-mini"

# Audio-MAE's classifier and its norm are never used, and would only decay; its positions are constants.
ENCODER = ("encoder.patch_embed.*", "encoder.class_token", "encoder.blocks.*")
LISTENING = ("aligner.*", "indicators")
UNUSED = ("aligner.heads.*",)  # of alignment, in the stages after it
ALIGNMENT = {"decoder": None, "aligner.out_dim": None, "aligner.pretraining": PretrainingConfig()}

# Rows and the authors' ratios: those of alignment are the data sets' sizes.
PAIRS = {"audioset": 1932684, "wavcaps": 2854925, "clotho": 24420, "audiocaps": 51977}
TASKS = {
    "audioset_tagging": 1.0,
    "wavcaps_captioning": 0.973,
    "clotho_captioning": 0.008,
    "audiocaps_captioning": 0.017,
    "clotho_answering": 0.1,
    "audioset_detection": 0.45,
    "audioset_retrieval": 0.45,
    "audioset_few_shot": 0.5,
}
MOST_CLIPS = 5  # of a row: those of an episode of four ways and one shot, and its query


def optim(warmup: int, epoch: int | None) -> OptimConfig:
    """LAVIS's AdamW and schedule; `epoch` updates are an inner epoch."""
    return OptimConfig(
        learning_rate=1e-4,
        schedule="cosine",
        warmup_steps=warmup,
        first_rate=1e-6,
        final_rate=1e-5,
        epoch_steps=epoch,
        weight_decay=0.05,
        no_decay=("*.bias", "*.scale", "*.word_bias", "*.temperature"),
        clip_norm=None,
    )


def rows(ratios: dict[str, float], batch_size: int, buckets: tuple[int, ...], max_slots: int | None = None) -> DataSpec:
    """Batches of one data set each."""
    return DataSpec(
        sources=tuple(Source(f"{ROWS}/{name}.jsonl") for name in ratios),
        ratios=tuple(ratios.values()),
        mixing="one_source_per_batch",
        batch_size=batch_size,
        buckets=buckets,
        max_slots=max_slots,
        seed=42,
        workers=8,
    )


def align(pairs: dict[str, float] = PAIRS, steps: int = 98_000, optim: OptimConfig = optim(5000, 4900)) -> Stage:
    """The aligner over a frozen encoder, without a language model; 400 rows by the authors' script, 100 by the yaml."""
    return Stage(
        "align",
        rows(pairs, 400, (448,), max_slots=1),
        ("aligner.*",),
        optim,
        steps=steps,
        objective="audio_text_alignment",
        model=ALIGNMENT,
        layout=ALIGNMENT_LAYOUT,
    )


def language(name: str, ratios: dict[str, float], trainable: tuple[str, ...], optim: OptimConfig, **options) -> Stage:
    """80 rows a step; the authors' micro-batch, over which they averaged the loss, had two."""
    data = rows(ratios, 80, (80, 112, 160, 256, 448, 896), MOST_CLIPS)
    begin = (Weights("*", PREVIOUS), Weights("decoder.*", VICUNA))
    return Stage(name, data, trainable, optim, loss_group=2, init_from=begin, drop=UNUSED, **options)


def experiment(name: str, model: AlmConfig, stages: tuple[Stage, ...], **options) -> Experiment:
    """APT over a Vicuna, trained in given stages."""
    shared = {
        "layout": LAYOUT,
        "template": PLAIN,
        "tokenizer": VICUNA,
        "aligner_tokenizer": BERT,
        "weights": (Weights("encoder.*", AUDIO_MAE), Weights("aligner.*", BERT, init=("aligner.proj.*",))),
        "mesh": MeshConfig(data=1, fsdp=-1),
        "precision": MIXED,
        "seed": 42,
        "topologies": ("v5e:4x4", "h100:8"),
        "loop": LoopConfig(checkpoint_every=500),
    }
    return Experiment(name=name, model=model, stages=stages, **(shared | options))


def decoder() -> LlamaConfig:
    """Vicuna's own 32000 ids: the two that the authors added are never read."""
    return LlamaConfig(remat="full")


def model() -> AlmConfig:
    """The published one; blocks of the encoder, which trains, are recomputed in the backward pass."""
    config = apt(decoder())
    return replace(config, encoder=replace(config.encoder, remat="full"))


def get_config() -> Experiment:
    # In micro-batches of two: 2,000 of warm-up, 62,500 an inner epoch, 1,250,000 in all, 40 an update.
    answer = language("answer", TASKS, (*ENCODER, *LISTENING), optim(50, 1562), steps=31_250)
    return experiment("apt_vicuna_7b", model(), (align(), answer))
