"""LTU 7B as published: CAV-MAE, Vicuna 7B with LoRA, four stages (Gong et al. 2023; train_script/stage*.sh).

    alm train ltu/vicuna_7b --out runs/ltu_7b
    alm plan ltu/vicuna_7b --topology v5e:4x4

The authors trained it on four RTX A6000 (48 GB) in about three days. It reads the rows of the OpenAQA data set under
`data/openaqa/data` and the authors' starting weights (Vicuna and CAV-MAE) under `pretrained_mdls/vicuna_ltu`.

The published `ltu_ori_paper.bin` is step 20,000 of the fourth stage, nine tenths of its epoch.
"""

from typing import NamedTuple

from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import MIXED
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.tasks.source import Tasks
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.ltu import LAYOUT, LORA, ltu
from alm_jax.train.config import Experiment, LoopConfig, Stage, Weights
from alm_jax.train.optim import OptimConfig

ROWS = "data/openaqa/data"
PRETRAINED = "pretrained_mdls/vicuna_ltu"
ALL = ("encoder.*", "aligner.*", "*.lora_?")


class Rows(NamedTuple):
    """What the stages read: labels (and features), all closed-ended questions, and open-ended ones too."""

    labels: tuple[Source | Tasks, ...]
    closed: tuple[Source | Tasks, ...]
    every: tuple[Source | Tasks, ...]


OPENAQA = Rows(
    (Source(f"{ROWS}/closed_ended/combine_cla.json"),),
    (Source(f"{ROWS}/closed_ended/all_closed_qa.json"),),
    (Source(f"{ROWS}/openaqa_5.6M.json"),),
)


def stage(
    name: str, sources: tuple, rate: float, trainable: tuple[str, ...], epochs: int, group: int, **options
) -> Stage:
    """256 rows a step; `group` is the authors' micro-batch, over which they averaged the loss."""
    data = DataSpec(sources, batch_size=256, buckets=(64, 80, 96, 112, 144), seed=42, workers=8)
    optim = OptimConfig(learning_rate=rate, schedule="linear", warmup_steps=100)
    return Stage(name, data, trainable, optim, epochs=epochs, loss_group=group, **options)


def experiment(name: str, decoder: LlamaConfig, pretrained: str, rows: Rows = OPENAQA) -> Experiment:
    """The four stages over a Vicuna of any size."""
    return Experiment(
        name=name,
        model=ltu(decoder),
        layout=LAYOUT,
        tokenizer=pretrained,
        weights=(Weights("*", pretrained, init=("aligner.*", "*.lora_?")),),
        stages=(
            stage("proj", rows.labels, 1e-3, ("aligner.*",), 2, 8, model={"decoder.lora": None}),
            stage("classify", rows.labels, 1e-4, ALL, 2, 4),
            stage("closed", rows.closed, 1e-4, ALL, 1, 4),
            stage("open", rows.every, 1e-4, ALL, 1, 4),
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        precision=MIXED,
        seed=42,
        topologies=("v5e:4x4", "h100:8"),
        loop=LoopConfig(checkpoint_every=500),
    )


def get_config() -> Experiment:
    return experiment("ltu_vicuna_7b", LlamaConfig(lora=LORA, remat="full"), PRETRAINED)
