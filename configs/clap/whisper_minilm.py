"""A small CLAP from pretrained parts: Whisper base listens, MiniLM reads; both are frozen, projections are trained.

    alm train clap/whisper_minilm --out runs/clap

All layers of Whisper are heard, averaged over ten seconds: a clip is one small feature, computed once. Scenes are
composed from the clips inside the package, with captions by rule.
"""

from dataclasses import replace

from alm_jax.audio.frontend import WhisperLogMel
from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import PLAIN
from alm_jax.models.clap import ClapConfig
from alm_jax.models.clap_training import BUCKETS, clap_training, layout
from alm_jax.models.registry import CONFIGS
from alm_jax.train.config import Experiment, LoopConfig, Stage, Validation, Weights
from alm_jax.train.optim import OptimConfig

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SCENES, STEPS, BATCH = 600, 300, 48
FRAMES = 1000  # 10 s
SCENE = SceneConfig(sounds=(1, 3), speed=(0.87, 1.15))
PROJECTIONS = ("aligner.audio.*", "aligner.text.projection.*", "aligner.logit_*")


def clap() -> ClapConfig:
    """MiniLM is read as it was trained: the mean of its tokens."""
    whisper = CONFIGS["whisper_base"]
    return ClapConfig(
        audio=whisper,
        text=replace(CONFIGS["minilm_l6"], pooler=False),
        dim=256,
        frontend=WhisperLogMel(frames=FRAMES, num_mels=whisper.mels, padding="mel"),
        taps=tuple(range(1, whisper.depth + 1)),
        pool=FRAMES // 2,
        dropout=0.2,
    )


def captions(n: int, seed: int, split: str = "train") -> DataSpec:
    scenes = Scenes(n, seed, scene=SCENE, split=split)
    return DataSpec((Tasks(scenes, ("captioning",)),), batch_size=BATCH, buckets=BUCKETS)


def get_config() -> Experiment:
    stage = Stage(
        "pair",
        captions(SCENES, 0),
        PROJECTIONS,
        OptimConfig(1e-3, "cosine", warmup_steps=STEPS // 10, weight_decay=0.1),
        steps=STEPS,
        objective="audio_text_contrast",
        features="cached",
        validation=Validation(captions(BATCH, 1), every=STEPS // 6),
    )
    return Experiment(
        name="clap_whisper_minilm",
        model=clap_training(clap()),
        layout=layout(clap()),
        template=PLAIN,
        tokenizer=MINILM,
        aligner_tokenizer=MINILM,
        weights=(Weights("encoder.*", "openai/whisper-base"), Weights("aligner.text.encoder.*", MINILM)),
        stages=(stage,),
        loop=LoopConfig(checkpoint_every=STEPS // 3),
    )
