"""LTU 7B on rows made of prepared data sets, mixed as OpenAQA is (Gong et al. 2024, table 1; official `openaqa/utils`).

    alm data prepare audioset_strong --src AudioSet --out data        and the other sets named below
    alm train ltu/vicuna_7b_prepared --out runs/ltu_7b

Where OpenAQA itself cannot be had, or other sets are to be asked about. As costly as `ltu/vicuna_7b`. Acoustic features
and open-ended questions are written by a language model at `WRITER` when the run begins, which is by far most of the
rows (3.7 of 5.7 million) and of the wait: `alm tasks` writes them beforehand, in batches too, and their files may stand
here as `Source`s.
"""

from pathlib import Path

from alm_jax.core.config import load_config_file
from alm_jax.data.tasks.registry import TaskConfig
from alm_jax.data.tasks.source import Tasks
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.ltu import LORA
from alm_jax.train.config import Experiment

DATA = "data"
WRITER, MODEL = "http://localhost:8000/v1", "vicuna"

# (set, split, how often an epoch hears it)
LABELLED = (
    ("audioset_strong", "train", 1),
    ("audioset_ltu", "train", 1),
    ("audioset", "balanced_train", 1),
    ("vggsound", "train", 1),
    ("fsd50k", "train+val", 1),
)
CAPTIONED = (
    ("wavcaps", "audioset_sl", 1),
    ("audiocaps", "train+val", 1),
    ("freesound", "train", 1),
    ("clotho", "train+val", 2),
    ("soundbible", "train", 10),
)
TIMED = (("audioset_strong", "train", 1),)
OPEN = (
    *(each for each in LABELLED if each[0] != "audioset_ltu"),
    *((name, split, 1) for name, split, _ in CAPTIONED if name != "wavcaps"),
)


def rows(sets: tuple, *tasks: str, closed_ended: float = 0.0) -> tuple[Tasks, ...]:
    """Rows of each set; a language model has a part in those that it writes or describes."""
    asked = {"writer": WRITER, "model": MODEL} if {"ltu_features", "open_ended"} & set(tasks) else {}
    options = TaskConfig(closed_ended=closed_ended)
    return tuple(Tasks(f"{DATA}/{name}", tasks, options, split, repeat=repeat, **asked) for name, split, repeat in sets)


def closed(share: float = 0.0) -> tuple[Tasks, ...]:
    """All closed-ended rows, of which this share says so."""
    labels = rows(LABELLED, "ltu_classification", "ltu_features", closed_ended=share)
    captions = rows(CAPTIONED, "ltu_captioning", closed_ended=share)
    return (*labels, *captions, *rows(TIMED, "ltu_temporal", closed_ended=share))


def get_config() -> Experiment:
    recipe = load_config_file(Path(__file__).with_name("vicuna_7b.py")).module
    made = recipe.Rows(
        labels=rows(LABELLED, "ltu_classification", "ltu_features"),
        closed=closed(),
        every=(*closed(0.5), *rows(OPEN, "open_ended")),
    )
    return recipe.experiment("ltu_vicuna_7b_prepared", LlamaConfig(lora=LORA, remat="full"), recipe.PRETRAINED, made)
