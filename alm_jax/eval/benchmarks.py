"""Benchmarks by name: which data set is asked what, and how answers are scored.

Prompts and parsing as of LTU's evaluation scripts (`L/inference_batch.py`, `L/eval/*.py`), APT's paper and scripts, and
MATS's test prompts. Each benchmark has a prompt of each system where that published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import ConfigError
from alm_jax.data.tasks import prompts
from alm_jax.eval.metrics.options import air_bench_prompt, avqa_prompt, mmau_match
from alm_jax.eval.protocols.base import QUESTION, Task
from alm_jax.eval.protocols.captions import Caption, OpenQuestions
from alm_jax.eval.protocols.classify import Classify, after_caption, without_commas
from alm_jax.eval.protocols.composed import Order, Pitch, Twice
from alm_jax.eval.protocols.events import Count, Detect
from alm_jax.eval.protocols.questions import Episodes, Options, Reasons, ShortAnswers
from alm_jax.eval.protocols.rated import Chat
from alm_jax.eval.protocols.retrieve import Retrieve
from alm_jax.eval.protocols.scenes import ComposedScenes

_CLASSIFY = {
    # LTU was trained on "Closed-ended" and tested with "Close-ended".
    "ltu": "Close-ended question: Write an audio caption describing the sound.",
    "apt": prompts.TAGGING[0],
    "mats": "Identify the sounds in the audio clip, only display audio tags.",
}
_MATS_CAPTION = "Describe the following audio in a caption."
_CAPTION = {
    "ltu": "Close-ended question: Write an audio caption describing the sound.",
    "apt": "Describe the audio clip concisely.",
    "mats": _MATS_CAPTION,
}
_MUSIC = _CAPTION | {"mats": "Listen to this music clip and describe the music."}
_QUESTION = {"plain": QUESTION}
_DETECT = {
    "apt": prompts.DETECTION[0],
    "ltu": "Closed-ended question: Classify the sound events in the audio clip, also output the timestamp of each "
    "audio event.",
}
_COUNT = {"ltu": "In how many instances is the sound of {LABEL} heard?", "apt": prompts.COUNTING[0]}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        about: in a few words.
        dataset: name of the data set (`data.sets.registry`); empty where none is needed, `any` where any one will do.
        split: which of its clips; several joined by `+`, or `all`.
        task: makes questions, scores answers.
        prompts: by system; the first is asked unless another is wanted.
        max_new_tokens: of a free answer.
        options: numbers that the task leaves open, where this benchmark has its own.
    """

    about: str
    dataset: str
    split: str
    task: Task
    prompts: Mapping[str, str] = field(default_factory=lambda: _QUESTION)
    max_new_tokens: int = 64
    options: Mapping[str, int] = field(default_factory=dict)


def _classes(about: str, dataset: str, split: str, **task) -> Benchmark:
    return Benchmark(about, dataset, split, Classify(**task), _CLASSIFY)


BENCHMARKS: dict[str, Benchmark] = {
    "scenes": Benchmark(
        "composed scenes, each kind of question by its own score (needs no data)", "", "all", ComposedScenes()
    ),
    "esc50": _classes("50 environmental sounds, all folds", "esc50", "all"),
    "urbansound8k": _classes("10 urban sounds, all folds", "urbansound8k", "all"),
    "dcase2017_task4": _classes(
        "17 sounds of traffic and warning; micro-F1 is accuracy", "dcase2017_task4", "eval", spell=without_commas
    ),
    "vocalsound": _classes("6 vocal sounds", "vocalsound", "test"),
    "tut2017": _classes("15 acoustic scenes", "tut2017", "eval"),
    "beijing_opera": _classes("4 percussion instruments", "beijing_opera", "test"),
    "gtzan": _classes("10 genres of music", "gtzan", "all"),
    "sesa": _classes("4 sounds of surveillance", "sesa", "test"),
    "crema_d": _classes("6 emotions in speech", "crema_d", "all"),
    "ravdess": _classes("8 emotions in speech", "ravdess", "speech"),
    "vggsound": _classes("309 classes of videos' sound", "vggsound", "test", read=after_caption),
    "fsd50k": _classes("200 classes, several a clip: mAP", "fsd50k", "test", many=True, read=after_caption),
    "audioset": _classes("527 classes, several a clip: mAP", "audioset", "eval", many=True, read=after_caption),
    "audiocaps": Benchmark(
        "captions of sounds",
        "audiocaps",
        "test",
        Caption(),
        _CAPTION | {"ltu": f"{_CAPTION['ltu'][:-1]}, in AudioCaps style."},
    ),
    "clotho": Benchmark(
        "captions of sounds, five references",
        "clotho",
        "test",
        Caption(),
        _CAPTION | {"ltu": "Close-ended question: Create a caption for audio, in Clotho style."},
    ),
    "musiccaps": Benchmark("captions of music", "musiccaps", "eval", Caption(), _MUSIC, 200),
    "song_describer": Benchmark("captions of songs", "song_describer", "test", Caption(), _MUSIC, 200),
    "macs": Benchmark("captions of acoustic scenes", "macs", "all", Caption(), _CAPTION),
    "audiocaps_retrieval": Benchmark("clips and captions found for each other (CLAP)", "audiocaps", "test", Retrieve()),
    "clotho_retrieval": Benchmark("clips and captions found for each other (CLAP)", "clotho", "test", Retrieve()),
    "clotho_aqa": Benchmark("questions answered by yes, no or a word", "clotho_aqa", "test", ShortAnswers()),
    "musicqa": Benchmark("open questions about music", "musicqa", "test", OpenQuestions(), _QUESTION, 200),
    "instruction_following": Benchmark(
        "how often an answer answers its question; a judge says (--judge)",
        "any",
        "all",
        OpenQuestions(judged=True),
        _QUESTION,
        200,
    ),
    "mmau": Benchmark("expert questions with options", "mmau", "test_mini", Options(match=mmau_match)),
    "air_bench": Benchmark(
        "AIR-Bench's foundation part: questions with options", "air_bench", "foundation", Options(word=air_bench_prompt)
    ),
    "air_bench_chat": Benchmark(
        "AIR-Bench's chat part: open questions, rated by a judge (--judge)", "air_bench", "chat", Chat(), _QUESTION, 200
    ),
    "avqa": Benchmark("questions with four options about videos' sound", "avqa", "val", Options(word=avqa_prompt)),
    "few_shot": Benchmark("N-way K-shot episodes of any labelled clips", "any", "all", Episodes(), {"plain": ""}),
    "esc50_5way_5shot": Benchmark("episodes of ESC-50, 5 ways and 5 shots", "esc50", "all", Episodes(), {"plain": ""}),
    "esc50_12way_5shot": Benchmark(
        "episodes of ESC-50, 12 ways and 5 shots", "esc50", "all", Episodes(), {"plain": ""}, options={"ways": 12}
    ),
    "nlar": Benchmark("questions that compare two recordings", "any", "all", Reasons(), {"plain": ""}, 16),
    "audioset_strong": Benchmark("when each sound is heard", "audioset_strong", "eval", Detect(), _DETECT, 128),
    "dcase2017_detection": Benchmark("when each sound is heard", "dcase2017_task4", "eval", Detect(), _DETECT, 128),
    "detection": Benchmark("when each sound of any annotated clips is heard", "any", "all", Detect(), _DETECT, 128),
    "counting": Benchmark("how often each annotated sound is heard", "any", "all", Count(), _COUNT, 32),
    "esc50_counting": Benchmark("one or two clips of a class: how many", "esc50", "all", Twice(), _COUNT, 32),
    "esc50_order": Benchmark(
        "which of two sounds begins first", "esc50", "all", Order(), {"ltu": "Which sound begins and ends first?"}
    ),
    "pitch": Benchmark(
        "do answers follow the pitch of shifted sirens", "audioset", "eval", Pitch(), {"ltu": "What is the pitch?"}
    ),
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name; ConfigError where there is none."""
    if name not in BENCHMARKS:
        hint = did_you_mean(name, BENCHMARKS) or "."
        raise ConfigError(f"no benchmark {name!r}{hint} alm eval --list lists them, and what each needs")
    return BENCHMARKS[name]
