"""AudioTIA: rows of (text, instruction, answer) for training on text alone, as MATS's are (Wang et al. 2025, section
3.5 and appendix B; official `audiofree_config_open.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from alm_jax.core.errors import DataError
from alm_jax.data.endpoint import Asker
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.draw import generator, sample

_WORDS = (3, 60)  # of a description that is of use


class DataSet(NamedTuple):
    """One of the published data sets.

    Attributes:
        tag: what stands before its questions, in brackets. weight: share of its batches; all are 1690.
        audio: whether MATS-Audio is trained on it, or it is only tested on.
    """

    tag: str
    weight: float
    audio: bool = True


DATA_SETS = {
    "emotion": DataSet("emotion event", 70, audio=False),
    "vocalsound": DataSet("vocal event", 20, audio=False),
    "salmonn_caption": DataSet("audio caption", 200),
    "audiocaps": DataSet("audio caption audiocaps", 40),
    "clotho": DataSet("audio caption clotho", 40),
    "macs": DataSet("audio caption", 50),
    "audioset": DataSet("multi events", 50),
    "fsd50k": DataSet("multi events", 50),
    "vggsound": DataSet("single event", 50),
    "dcase": DataSet("single event", 20),
    "esc": DataSet("single event", 20, audio=False),
    "urban": DataSet("single event", 20, audio=False),
    "tut": DataSet("scene event", 20),
    "sesa": DataSet("surveillance event", 20),
    "bjo": DataSet("instruction event", 20, audio=False),
    "genres": DataSet("music genres", 20, audio=False),
    "gama_music": DataSet("music classification", 180),
    "musiccaps": DataSet("music caption", 50),
    "magna": DataSet("music caption", 50),
    "sdd": DataSet("music caption", 50, audio=False),
    "clotho_aqa": DataSet("audio qa", 50),
    "open_ended": DataSet("open ended", 300),
    "music_aqa": DataSet("open ended", 300),
}

Describe = Callable[[Sequence[tuple[str, ...]], int], list[str]]
"""`describe(labels of each clip, seed)`: a description of each, as a listener would give it."""

_FORMS = (
    "The sound of {}.",
    "{} can be heard.",
    "A recording of {}.",
    "{} is heard in the clip.",
    "There is the sound of {}.",
    "Someone recorded {}.",
)
_PLACES = ("", "", " in the distance", " close to the microphone", " over a quiet background", " for a while")

PROMPT = """\
Descriptions of what is heard in recordings, from the labels of the sounds in them:

dog bark -> A dog barks several times in a yard.
rain; thunder -> Heavy rain falls while thunder rolls in the distance.
violin -> A solo violin plays a slow, mournful melody.

Write one sentence of this kind that describes how a recording with these labels sounds. Name every sound, and nothing \
that is seen. Answer with the sentence alone.

{LABELS} ->"""


def described_by_rule(labels: Sequence[tuple[str, ...]], seed: int) -> list[str]:
    """Descriptions from patterns, without a language model."""
    told = []
    for i, sounds in enumerate(labels):
        rng = generator(seed, "describe", i, *sounds)
        names = sample(sounds, len(sounds), rng)
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        form, place = sample(_FORMS, 1, rng)[0], sample(_PLACES, 1, rng)[0]
        text = form.format(listed)
        told.append(f"{text[:1].upper()}{text[1:-1]}{place}.")
    return told


@dataclass(frozen=True)
class AskedDescriptions:
    """Descriptions by a language model, one a set of labels (appendix B.4); a `Describe`.

    Labels that get no description of use in a few attempts are described by rule.
    """

    ask: Asker

    def __call__(self, labels: Sequence[tuple[str, ...]], seed: int) -> list[str]:
        """Raises EndpointError if the model does not answer."""
        unique = list(dict.fromkeys(labels))
        answers = self.ask(
            [PROMPT.format(LABELS="; ".join(sounds)) for sounds in unique],
            lambda i, told: "" if usable(told[-1]) else "no description in one sentence",
        )
        found = {sounds: usable(told[-1]) for sounds, told in zip(unique, answers)}
        ruled = described_by_rule(labels, seed)
        return [found[sounds] or rule for sounds, rule in zip(labels, ruled)]


def usable(answer: str) -> str:
    """A model's description on one line; empty if it is none in a sentence or two."""
    text = re.sub(r"^.*->", "", " ".join(answer.split())).strip("\"'* ")
    return text if _WORDS[0] <= len(text.split()) <= _WORDS[1] and not re.search(r"[\[\]{}<>]", text) else ""


def with_captions(clips: Sequence[LabelledClip], describe: Describe, seed: int) -> list[LabelledClip]:
    """The clips, each of which can be read: those without a caption get a description of their labels.

    Raises:
        DataError: a clip has neither captions nor labels. Whatever `describe` raises.
    """
    bare = [i for i, clip in enumerate(clips) if not clip.captions]
    if lacking := [clips[i].name for i in bare if not clips[i].labels]:
        raise DataError(f"{len(lacking)} clips have neither a caption nor labels, {lacking[0]} for one: give them some")
    told = dict(zip(bare, describe([clips[i].labels for i in bare], seed))) if bare else {}
    return [replace(clip, captions=(told[i],)) if i in told else clip for i, clip in enumerate(clips)]


def text_rows(rows: Iterable[AudioRow], clips: Sequence[LabelledClip], tag: str = "") -> Iterator[AudioRow]:
    """The rows with a caption of each of their clips: the one that is asked for, or the clip's first.

    Args:
        clips: those of the rows, `with_captions`. tag: stands in brackets before each question (`DATA_SETS`).

    A row whose sound files are not there names none.
    """
    captions = {str(clip.path): clip.captions for clip in clips}
    there = {path: Path(path).is_file() for path in captions}
    for row in rows:
        told = [row.output if row.output in captions[path] else captions[path][0] for path in row.clips]
        yield replace(
            row,
            instruction=f"[{tag}] {row.instruction}" if tag else row.instruction,
            caption=tuple(told) if len(told) > 1 else "".join(told),
            audio_id=row.audio_id if all(there[path] for path in row.clips) else "",
        )
