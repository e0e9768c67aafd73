"""CLAP at toy size, from random weights, on composed scenes: for tests and for trying things.

    alm train clap/tiny --out runs/clap_tiny
    alm sweep clap/tiny --out runs/clap_losses     InfoNCE, the sigmoid loss, and InfoNCE by gradient caching

Costs a minute or two of processor time and 1 GB; nothing is downloaded. An Audio-MAE encoder and a BERT learn together.
"""

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import PLAIN
from alm_jax.models.clap import ClapConfig
from alm_jax.models.clap_training import BUCKETS, clap_training, layout
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.text.bert import BertConfig
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer, Validation
from alm_jax.train.optim import OptimConfig

VOCABULARY = 512
SCENE = SceneConfig(seconds=4.0, event_seconds=1.5, sounds=(1, 2), repeats=(1, 1), background_probability=0.0)


def clap(contrast: str = "softmax") -> ClapConfig:
    encoder = AudioMaeConfig(frames=384, mels=64, dim=64, heads=4, depth=2, mlp_dim=128)
    return ClapConfig(
        audio=encoder,
        text=BertConfig(VOCABULARY, 64, 2, 4, 128, positions=80, pooler=False),
        dim=32,
        # An encoder that has heard nothing hears more in frames of about mean 0 and deviation 1.
        frontend=KaldiFbank(frames=encoder.frames, num_mels=encoder.mels, mean=-5.0, std=5.0),
        contrast=contrast,
        dropout=0.0,
    )


def captions(n: int, seed: int) -> DataSpec:
    return DataSpec((Tasks(Scenes(n, seed, scene=SCENE), ("captioning",)),), batch_size=16, buckets=BUCKETS)


def get_config() -> Experiment:
    stage = Stage(
        "pair",
        captions(64, 0),
        ("encoder.*", "aligner.*"),
        OptimConfig(2e-3, "cosine", warmup_steps=10),
        steps=100,
        objective="audio_text_contrast",
        validation=Validation(captions(16, 1), every=50),
    )
    return Experiment(
        name="clap_tiny",
        model=clap_training(clap()),
        layout=layout(clap()),
        template=PLAIN,
        tokenizer=TrainTokenizer(VOCABULARY),
        aligner_tokenizer=TrainTokenizer(VOCABULARY),
        stages=(stage,),
        loop=LoopConfig(checkpoint_every=20),
    )


def sweep():
    yield {"name": "clap_tiny"}
    yield {"name": "clap_tiny_sigmoid", "model.aligner": clap_training(clap("sigmoid")).aligner}
    yield {"name": "clap_tiny_cached", "stages.pair.micro_batch": 4}
