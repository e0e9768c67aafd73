"""CLAP in the shape of MS-CLAP 2023: HTSAT, GPT-2, residual projections (Elizalde et al. 2023).

    alm train clap/htsat_msclap --out runs/msclap
    alm plan clap/htsat_msclap --topology v5e:4x4

All 1,536 rows of a batch are each other's negatives; activations of 384 are held at a time (gradient caching). Begins
at the published weights under `pretrained_mdls/msclap` and reads rows of clips and captions that `alm tasks` makes
under `data/clap`. The authors' 4.6M pairs and settings are not published; rates here are ours. Not run by us.
"""

from dataclasses import replace

from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import MIXED
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import PLAIN
from alm_jax.models.clap import ClapConfig
from alm_jax.models.clap_training import BUCKETS, clap_training, layout
from alm_jax.train.config import Experiment, LoopConfig, Stage, Weights
from alm_jax.train.optim import OptimConfig

ROWS = ("wavcaps", "audiocaps", "clotho", "audioset")
CLAP, GPT2 = "pretrained_mdls/msclap", "pretrained_mdls/gpt2"


def pair(batch_size: int = 1536, micro_batch: int = 384, rate: float = 1e-4) -> Stage:
    rows = tuple(Source(f"data/clap/{name}_captioning.jsonl") for name in ROWS)
    return Stage(
        "pair",
        DataSpec(rows, batch_size=batch_size, buckets=BUCKETS, workers=8),
        ("encoder.*", "aligner.*"),
        OptimConfig(rate, "cosine", 2000, weight_decay=0.01, no_decay=("*.bias", "*.scale", "*.logit_*")),
        epochs=10,
        objective="audio_text_contrast",
        micro_batch=micro_batch,
    )


def experiment(name: str, clap: ClapConfig, stage: Stage, tokenizer: str, *weights: Weights) -> Experiment:
    """A CLAP of any shape on the same rows; blocks are recomputed in the backward pass."""
    clap = replace(clap, audio=replace(clap.audio, remat="full"), text=replace(clap.text, remat="full"))
    return Experiment(
        name=name,
        model=clap_training(clap),
        layout=layout(clap),
        template=PLAIN,
        tokenizer=tokenizer,
        aligner_tokenizer=tokenizer,
        stages=(stage,),
        weights=weights,
        mesh=MeshConfig(data=1, fsdp=-1),
        precision=MIXED,
        topologies=("v5e:4x4", "h100:8"),
        loop=LoopConfig(checkpoint_every=500),
    )


def get_config() -> Experiment:
    return experiment("clap_htsat_msclap", ClapConfig(), pair(), GPT2, Weights("*", CLAP))
