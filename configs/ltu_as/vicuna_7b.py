"""LTU-AS 7B as published: Whisper large v1, TLTR, Vicuna 7B with LoRA, three stages (Gong et al. 2023).

    alm train ltu_as/vicuna_7b --out runs/ltu_as_7b
    alm plan ltu_as/vicuna_7b --topology v5e:4x4

Somewhat more than LTU 7B (three days on four RTX A6000), and half a day of an accelerator for Whisper's features,
which are computed once (2 MB a clip). It reads the rows of Open-ASQA under
`data/openasqa`, whose `input` is the transcript, and the authors' starting weights (Vicuna and TLTR) under
`pretrained_mdls/vicuna_ltuas`.

The third stage is the published "v1" run; the longer "v2" run is `--stages.mix.epochs 2 --layout.max-text-tokens 160`.
"""

from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import MIXED
from alm_jax.data.plan import DataSpec, Source
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.ltu import LORA
from alm_jax.models.ltu_as import LAYOUT, ltu_as
from alm_jax.train.config import Experiment, LoopConfig, Stage, Weights
from alm_jax.train.optim import OptimConfig

ROWS = "data/openasqa"
PRETRAINED = "pretrained_mdls/vicuna_ltuas"
ALL = ("aligner.*", "*.lora_?")


def stage(name: str, rows: str, rate: float, trainable: tuple[str, ...], epochs: int, **options) -> Stage:
    data = DataSpec((Source(f"{ROWS}/{rows}"),), batch_size=256, buckets=(64, 96, 136, 192), seed=42, workers=8)
    optim = OptimConfig(learning_rate=rate, schedule="linear", warmup_steps=100)
    options = {"loss_group": 4, "features": "cached"} | options
    return Stage(name, data, trainable, optim, epochs=epochs, **options)


def get_config() -> Experiment:
    return Experiment(
        name="ltu_as_vicuna_7b",
        model=ltu_as(LlamaConfig(lora=LORA, remat="full")),
        layout=LAYOUT,
        tokenizer=PRETRAINED,
        weights=(
            Weights("encoder.*", "openai/whisper-large"),
            Weights("*", PRETRAINED, init=("encoder.*", "aligner.proj.*", "*.lora_?")),
        ),
        stages=(
            stage("proj", "stage1_proj.json", 1e-3, ("aligner.proj.*",), 2, loss_group=8, model={"decoder.lora": None}),
            stage("all", "stage2_all.json", 1e-4, ALL, 2),
            stage("mix", "stage3_mix.json", 2e-4, ALL, 1),
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        precision=MIXED,
        seed=42,
        topologies=("v5e:4x4", "h100:8"),
        loop=LoopConfig(checkpoint_every=500),
    )
