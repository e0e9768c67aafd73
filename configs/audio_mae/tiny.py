"""Audio-MAE at toy size: an encoder learns by itself to see what is hidden from it; for tests and for trying things.

    alm train audio_mae/tiny --out runs/audio_mae_tiny

Costs a minute or two of processor time and 1 GB; nothing is downloaded. Captions of the scenes are not read.
"""

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.core.sequence import Layout
from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import PLAIN
from alm_jax.models.aligners.mae_decoder import MaeDecoderConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer, Validation
from alm_jax.train.optim import OptimConfig

SCENE = SceneConfig(seconds=4.0, event_seconds=1.5, sounds=(1, 2), repeats=(1, 2))
LAYOUT = Layout(loss_on="all", max_text_tokens=2)  # rows weigh alike


def clips(n: int, seed: int) -> DataSpec:
    source = Tasks(Scenes(n, seed, scene=SCENE), ("captioning",))
    return DataSpec((source,), batch_size=8, buckets=(LAYOUT.max_text_tokens + 96,))


def get_config() -> Experiment:
    encoder = AudioMaeConfig(frames=384, mels=64, dim=64, heads=4, depth=2, mlp_dim=128, global_pool=False)
    decoder = MaeDecoderConfig(hidden=32, heads=4, depth=2).over(encoder)
    stage = Stage(
        "reconstruct",
        clips(64, 0),
        ("encoder.*", "aligner.*"),
        OptimConfig(2e-3, "cosine", warmup_steps=10, betas=(0.9, 0.95)),
        steps=100,
        objective="masked_reconstruction",
        validation=Validation(clips(8, 1), every=50),
    )
    return Experiment(
        name="audio_mae_tiny",
        model=AlmConfig(
            frontend=KaldiFbank(frames=encoder.frames, num_mels=encoder.mels, mean=-5.0, std=5.0),
            encoder=encoder,
            aligner=decoder,
            decoder=None,
        ),
        layout=LAYOUT,
        template=PLAIN,
        tokenizer=TrainTokenizer(512),
        stages=(stage,),
        loop=LoopConfig(checkpoint_every=20),
    )
