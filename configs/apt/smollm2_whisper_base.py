"""APT's shape at a size that two cores train: Whisper base, a Q-Former, SmolLM2-135M-Instruct with LoRA.

    alm train apt/smollm2_whisper_base --out runs/apt_small
    python tools/compare_apt.py --out runs/apt          all of sweep(), trained and scored (docs/apt.md)

The encoder is frozen, its weights and the language model's are the quickstart's (240 MB are downloaded once). Features
are computed once. Scenes of five seconds are composed from the clips inside the package. The curriculum of the paper's
table I: aligning audio and text without the language model, then tasks about one clip, then some about several.
Two things are not the paper's, since two cores do a hundred steps of the language model in minutes and not a million:
a stage between the first two (`heard_words`, the quickstart's first), and LoRA. The variant `frozen` has no LoRA.
"""

from dataclasses import replace

from alm_jax.audio.frontend import WhisperLogMel
from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.scenes import SceneConfig
from alm_jax.data.tasks.few_shot import FewShot
from alm_jax.data.tasks.reasoning import Reasoning
from alm_jax.data.tasks.registry import TaskConfig
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import CHATML
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormerConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.apt import ALIGNMENT_LAYOUT, LAYOUT
from alm_jax.models.registry import CONFIGS
from alm_jax.train.config import PREVIOUS, Experiment, LoopConfig, Stage, Weights
from alm_jax.train.optim import OptimConfig

WHISPER, SMOLLM2 = "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # BERT's word pieces
FRAMES, POOL = 512, 8  # five seconds of Whisper's frames; a feature each 0.16 s
STEPS, QUERIES = FRAMES // 2 // POOL, 4
# Most labels have one clip; at one speed it would be learnt by heart.
SCENE = SceneConfig(seconds=5.0, event_seconds=2.0, sounds=(1, 2), repeats=(1, 2), speed=(0.87, 1.15))
SCENES = 400
SINGLE = ("tagging", "counting")
OPTIONS = TaskConfig(FewShot(ways=4, shots=1, episodes=240), Reasoning(pairs=120, questions=5))
LANGUAGE_LAYOUT = replace(LAYOUT, aligner_text_tokens=24, opens_with="bos")
UNUSED = ("aligner.heads.*",)  # of alignment, in the stages after it
LISTENING = ("aligner.*", "indicators")
ADAPTED = (*LISTENING, "*.lora_?")
STEPS_ALIGN, STEPS_WORDS, STEPS_SINGLE, STEPS_SEVERAL = 200, 300, 60, 40


def scenes(n: int = SCENES, seed: int = 0, **options) -> Scenes:
    return Scenes(n, seed, scene=SCENE, **options)


def rows(batch_size: int, *groups: tuple[str, ...]) -> DataSpec:
    """Each batch from one group of tasks, all groups alike often."""
    sources = tuple(Tasks(scenes(), names, OPTIONS) for names in groups)
    ratios = (1.0,) * len(sources) if len(sources) > 1 else ()
    return DataSpec(sources, batch_size, (36, 52, 80), mixing="one_source_per_batch", ratios=ratios)


def align() -> Stage:
    """The aligner and the names of what is heard."""
    return Stage(
        "align",
        rows(16, ("tagging",)),
        ("aligner.*",),
        OptimConfig(1e-3, "cosine", 20),
        steps=STEPS_ALIGN,
        objective="audio_text_alignment",
        model={"decoder": None, "aligner.out_dim": None, "aligner.pretraining": PretrainingConfig()},
        layout=replace(ALIGNMENT_LAYOUT, aligner_text_tokens=10),
        features="cached",
    )


def words() -> Stage:
    """The aligner's tokens and the words of the language model, which is not run."""
    stage = language("words", STEPS_WORDS, ("tagging",))
    optim = OptimConfig(3e-4, "cosine", 20)  # at 2e-3 the Q-Former's words are no better after 200 steps than after 15
    data = rows(16, ("tagging",))
    return replace(stage, data=data, trainable=("aligner.*",), optim=optim, objective="heard_words")


def language(name: str, steps: int, *groups: tuple[str, ...]) -> Stage:
    """Answers of the language model."""
    return Stage(
        name,
        rows(8, *groups),
        ADAPTED,
        # LoRA begins at zero and has far to go in few steps; at such rates the aligner forgets what it has learnt.
        OptimConfig(2e-3, "cosine", 5, lr_scale={"aligner.*": 0.01}),
        steps=steps,
        features="cached",
        init_from=(Weights("*", PREVIOUS), Weights("decoder.*", SMOLLM2)),
        drop=UNUSED,
    )


def single() -> Stage:
    return language("single", STEPS_SINGLE, SINGLE)


def several(*more: str) -> Stage:
    """Some tasks about several clips beside those about one."""
    return language("several", STEPS_SEVERAL, SINGLE, *((name,) for name in more))


def get_config() -> Experiment:
    encoder, decoder = CONFIGS["whisper_base"], replace(CONFIGS["smollm2_135m"], lora=Lora(dropout=0.0))
    size = {"queries": QUERIES, "depth": 2, "cross_every": 1, "dropout": 0.0}  # else BERT-mini's, as APT's
    aligner = QFormerConfig(encoder.dim, decoder.dim, STEPS, **size)
    return Experiment(
        name="apt_small",
        model=AlmConfig(
            frontend=WhisperLogMel(frames=FRAMES, num_mels=encoder.mels, padding="mel"),
            encoder=encoder,
            aligner=aligner,
            decoder=decoder,
            taps=(5,),
            pool=POOL,
            indicators=1,
        ),
        layout=LANGUAGE_LAYOUT,
        template=CHATML,
        tokenizer=SMOLLM2,
        aligner_tokenizer=MINILM,
        weights=(Weights("encoder.*", WHISPER),),
        stages=(align(), words(), single(), several("few_shot", "nlar")),
        loop=LoopConfig(checkpoint_every=50, tensorboard=False),
    )


def sweep():
    """What the comparison in docs/apt.md is between; all but one-stage see the same batches of the same stages."""
    config = get_config()
    unaligned = tuple(replace(stage, drop=()) for stage in config.stages[1:])
    steps = STEPS_SINGLE + STEPS_SEVERAL
    at_once = language("at_once", steps, SINGLE, ("few_shot",), ("nlar",))
    linear = PooledLinearConfig(config.model.encoder.dim, config.model.decoder.dim, (1, STEPS), STEPS // QUERIES)
    yield {"name": "curriculum"}
    yield {"name": "unaligned", "stages": unaligned}
    yield {
        "name": "linear",
        "stages": unaligned,
        "model.aligner": linear,
        "layout.aligner_text_tokens": 0,
        "aligner_tokenizer": None,
    }
    yield {"name": "one_stage", "stages": (align(), words(), at_once)}
    yield {"name": "without_nlar", "stages": (align(), words(), single(), several("few_shot"))}
    frozen = tuple(replace(stage, trainable=LISTENING) for stage in config.stages[2:])
    yield {"name": "frozen", "stages": (align(), words(), *frozen)}
