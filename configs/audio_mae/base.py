"""Audio-MAE, ViT-B/16, pretrained by reconstructing hidden patches (Huang et al. 2022; ALM survey, equation 6).

    alm train audio_mae/base --out runs/audio_mae
    alm plan audio_mae/base --topology v5e:4x4

80% of the patches of ten seconds are hidden; a decoder of local attention, half shifted windows, tells them. It reads
clips named by `data/audioset/clips.jsonl` (rows as of LTU; their text is not read). Not run by us at this size. A later
run begins with its encoder by `Weights("encoder.*", "runs/audio_mae")`.
"""

from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import MIXED
from alm_jax.core.sequence import Layout
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import PLAIN
from alm_jax.models.aligners.mae_decoder import MaeDecoderConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.apt import AUDIO_MAE_FRONTEND
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer
from alm_jax.train.optim import OptimConfig

LAYOUT = Layout(loss_on="all", max_text_tokens=2)  # rows weigh alike


def get_config() -> Experiment:
    encoder = AudioMaeConfig(global_pool=False, remat="full")
    decoder = MaeDecoderConfig(remat="full").over(encoder)
    rows = Source("data/audioset/clips.jsonl")
    stage = Stage(
        "reconstruct",
        DataSpec((rows,), batch_size=512, buckets=(LAYOUT.max_text_tokens + decoder.tokens,), workers=8),
        ("encoder.*", "aligner.*"),
        OptimConfig(
            learning_rate=4e-4,
            schedule="cosine",
            warmup_steps=12_000,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
            no_decay=("*.bias", "*.scale", "*_token"),
            clip_norm=None,
        ),
        epochs=32,
        objective="masked_reconstruction",
    )
    return Experiment(
        name="audio_mae_base",
        model=AlmConfig(frontend=AUDIO_MAE_FRONTEND, encoder=encoder, aligner=decoder, decoder=None),
        layout=LAYOUT,
        template=PLAIN,
        tokenizer=TrainTokenizer(512),
        stages=(stage,),
        mesh=MeshConfig(data=1, fsdp=-1),
        precision=MIXED,
        topologies=("v5e:4x4", "h100:8"),
        loop=LoopConfig(checkpoint_every=1000),
    )
