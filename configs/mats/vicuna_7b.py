"""MATS-LLaMA as published (Wang et al. 2025; official `audiofree_config_open.yaml` and `optims.py`, commit 45d6571).

    alm train mats/vicuna_7b --out runs/mats_7b
    alm plan mats/vicuna_7b --topology v5e:4x4

The authors took about 35 hours on two A100. It reads rows with captions under `data/mats`, which `alm tasks` makes
(AudioTIA-5M is not published): a file for each of `DATA_SETS`, each batch from one of them. MS-CLAP 2023 and Vicuna 1.5
lie under `pretrained_mdls`. Their `[PAD]` is never read, so the vocabulary is Vicuna's own. Two things are otherwise in
the authors' training: the frozen CLAP drops out, as in its own; and the losses of two micro-batches are added, not
averaged, which Adam does not tell apart.
"""

from dataclasses import replace

from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import MIXED
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.rows import Hears
from alm_jax.data.tasks.audiotia import DATA_SETS
from alm_jax.data.templates import MATS
from alm_jax.models.alm import AlmConfig
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.mats import ABLATIONS, LAYOUT, LORA, mats
from alm_jax.train.config import Experiment, LoopConfig, Stage, Weights
from alm_jax.train.optim import OptimConfig

ROWS = "data/mats"
CLAP, VICUNA, GPT2 = "pretrained_mdls/msclap", "pretrained_mdls/vicuna_7b_v1.5", "gpt2"
UPDATES = 90_000  # 30 epochs of 3000; the paper's 360,000 are micro-iterations


def optim(rate: float, schedule: str, warmup: int, **options) -> OptimConfig:
    """AdamW of LAVIS, without clipping."""
    spared = ("*.bias", "*.scale")
    return OptimConfig(rate, schedule, warmup, weight_decay=0.05, no_decay=spared, clip_norm=None, **options)


def rows(batch_size: int, names: tuple[str, ...] = tuple(DATA_SETS)) -> DataSpec:
    return DataSpec(
        sources=tuple(Source(f"{ROWS}/{name}.jsonl") for name in names),
        ratios=tuple(DATA_SETS[name].weight for name in names),
        mixing="one_source_per_batch",
        batch_size=batch_size,
        buckets=(96, 128, 192, 256, 512),
        seed=42,
        workers=8,
    )


def experiment(name: str, model: AlmConfig, stage: Stage, tokenizer: str, **options) -> Experiment:
    """MATS over a decoder of the name or path `tokenizer`; mapper and LoRA train."""
    return Experiment(
        name=name,
        model=model,
        layout=LAYOUT,
        template=MATS,
        tokenizer=tokenizer,
        encoder_tokenizer=GPT2,
        weights=(Weights("encoder.*", CLAP), Weights("decoder.*", tokenizer)),
        stages=(stage,),
        precision=MIXED,
        seed=42,
        loop=LoopConfig(checkpoint_every=500),
        **options,
    )


def stage(data: DataSpec, optim: OptimConfig, group: int, hears: Hears = "text", **options) -> Stage:
    """The loss is averaged over the authors' micro-batches of `group` rows."""
    return Stage(
        *("text" if hears == "text" else "audio", data, ("aligner.*", "*.lora_?"), optim),
        steps=UPDATES,
        loss_group=group,
        hears=hears,
        **options,
    )


def decoder() -> LlamaConfig:
    return LlamaConfig(lora=LORA, remat="full")


def get_config(hears: Hears = "text", names: tuple[str, ...] = tuple(DATA_SETS)) -> Experiment:
    falling = optim(3e-5, "cosine", 3000, first_rate=1e-7, epoch_steps=1)
    model = mats(decoder())
    model = replace(model, aligner=replace(model.aligner, remat="full"))
    mesh = MeshConfig(data=1, fsdp=-1)
    trained = stage(rows(96, names), falling, 12, hears)
    return experiment("mats_vicuna_7b", model, trained, VICUNA, mesh=mesh, topologies=("v5e:4x4", "h100:8"))


def sweep():
    """Table 4; only the runs without noise differ in training."""
    for name, overrides in ABLATIONS.items():
        yield {"name": f"mats_vicuna_7b_{name}", **overrides}
