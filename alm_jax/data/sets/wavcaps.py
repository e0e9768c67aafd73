"""WavCaps (Mei et al. 2024): captions that a language model wrote from descriptions and tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.tables import fields, number, read_json

# Split, table, folder of the audio, where its clips come from.
_PARTS = {
    "audioset_sl": ("AudioSet_SL/as_final.json", "AudioSet_SL", "youtube"),
    "bbc": ("BBC_Sound_Effects/bbc_final.json", "BBC_Sound_Effects", "bbc"),
    "freesound": ("FreeSound/fsd_final.json", "FreeSound", "freesound"),
    "soundbible": ("SoundBible/sb_final.json", "SoundBible", "soundbible"),
}
_FREESOUND_SECONDS = 10.0  # LTU takes the clips shorter than this (appendix P.1)


def _read(
    files: Files, report: Report, parts: tuple[str, ...] = tuple(_PARTS), seconds: float | None = None
) -> Iterator[Item]:
    for part in parts:
        table, folder, source = _PARTS[part]
        place = files.find(table)
        for where, row in read_json(files, place, report, under="data") if place else ():
            told = fields(row, ("id", "caption"), where, report)
            if told is None or (seconds is not None and not _shorter(row, seconds, where, report)):
                continue
            name, caption = told
            stem = name.rpartition(".")[0] or name
            recording = stem.removeprefix("Y") if source == "youtube" else stem
            # Extracted, the zips hold their makers' folders: .../FreeSound_flac/ID.flac.
            yield Item(
                id=f"{part}/{stem}",
                split=part if len(parts) > 1 else "train",
                audio=(f"{folder}_flac/{stem}", f"{folder}/{stem}", stem),
                captions=(caption,),
                source=f"{source}:{recording}",
            )


def _shorter(row: dict[str, Any], seconds: float, where: str, report: Report) -> bool:
    length = number(str(row.get("duration") or 0), where, report)
    return length is not None and length < seconds


def _set(name: str, title: str, clips: int, hours: float, parts: tuple[str, ...], **more: object) -> DataSet:
    read: Callable[[Files, Report], Iterator[Item]] = partial(_read, parts=parts, seconds=more.pop("seconds", None))
    return DataSet(
        name=name,
        title=title,
        url="https://huggingface.co/datasets/cvssp/WavCaps",
        licence="CC BY 4.0 for captions, for academic use; of each clip as its source has it",
        clips=clips,
        hours=hours,
        splits=parts if len(parts) > 1 else ("train",),
        expected=(
            *(Expected(_PARTS[part][0], f"captions of {part}", group="tables") for part in parts),
            Expected("*.flac", "the clips, extracted"),
        ),
        read=read,
        **more,
    )


WAVCAPS = _set(
    "wavcaps",
    "WavCaps: clips of four collections with captions by a language model",
    403050,
    7568.0,
    tuple(_PARTS),
    gigabytes=819.0,
    shares=("audioset", "freesound"),
    note="AudioCaps, Clotho, ESC-50, UrbanSound8K and VGGSound hold some of these clips",
)
FREESOUND = _set(
    "freesound",
    "Freesound clips shorter than 10 s, captioned by WavCaps (LTU)",
    91434,
    110.0,
    ("freesound",),
    seconds=_FREESOUND_SECONDS,
    gigabytes=None,
    shares=("freesound",),
    owns_folder=False,
)
SOUNDBIBLE = _set(
    "soundbible",
    "SoundBible, captioned by WavCaps (LTU)",
    1232,
    4.0,
    ("soundbible",),
    gigabytes=0.6,
    owns_folder=False,
)
