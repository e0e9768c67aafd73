"""VocalSound (Gong et al. 2022), CREMA-D (Cao et al. 2014), RAVDESS (Livingstone and Russo 2018), SESA (Spadini 2019):
what their files are named after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files, path_of
from alm_jax.data.sets.tables import fields, read_json

_VOCAL = {"train": "tr", "val": "val", "test": "te"}
_SOUNDS = {
    "laughter": "Laughter",
    "sigh": "Sigh",
    "cough": "Cough",
    "throatclearing": "Throat clearing",
    "sneeze": "Sneeze",
    "sniff": "Sniff",
}
_CREMA = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
_RAVDESS = dict(
    zip("12345678", ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"), strict=True)
)
_SESA = {"casual": "casual sound", "gunshot": "gunshot", "explosion": "explosion", "siren": "siren"}


def _read_vocalsound(files: Files, report: Report) -> Iterator[Item]:
    for split, published in _VOCAL.items():
        place = files.find(f"datafiles/{published}.json")
        for where, row in read_json(files, place, report, under="data") if place else ():
            told = fields(row, ("wav",), where, report)
            if told is None:
                continue
            stem = PurePosixPath(told[0]).stem
            speaker, _, sound = stem.partition("_")[0], *stem.rpartition("_")[1:]
            if sound not in _SOUNDS:
                report.add("label outside the ontology", where, stem)
                continue
            yield Item(id=stem, split=split, audio=(stem,), labels=(_SOUNDS[sound],), meta={"speaker": speaker})


def _read_named(files: Files, report: Report, pattern: str, form: str, read: object) -> Iterator[Item]:
    """A clip for each sound whose name has the form."""
    for place in files.sounds(pattern):
        stem = path_of(place).stem
        found = re.fullmatch(form, stem)
        item = read(place, stem, found) if found else None
        if item is None:
            report.add("label outside the ontology", place, "its name says no known label")
        else:
            yield item


def _read_crema(files: Files, report: Report) -> Iterator[Item]:
    def read(place: str, stem: str, found: re.Match[str]) -> Item | None:
        meta = {"speaker": found[1], "sentence": found[2], "intensity": found[4]}
        label = _CREMA.get(found[3])
        return Item(stem, "train", (place,), (label,), meta=meta) if label else None

    yield from _read_named(files, report, "AudioWAV/*", r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})", read)


def _read_ravdess(files: Files, report: Report) -> Iterator[Item]:
    def read(place: str, stem: str, found: re.Match[str]) -> Item | None:
        label = _RAVDESS.get(found[3].lstrip("0"))
        split = {"01": "speech", "02": "song"}.get(found[2])
        meta = {"speaker": found[7], "intensity": found[4]}
        return Item(stem, split, (place,), (label,), meta=meta) if label and split else None

    yield from _read_named(files, report, "Actor_*/*", "-".join([r"(\d\d)"] * 7), read)


def _read_sesa(files: Files, report: Report) -> Iterator[Item]:
    def read(place: str, stem: str, found: re.Match[str]) -> Item | None:
        label = _SESA.get(found[1])
        split = path_of(place).parent.name
        return Item(f"{split}/{stem}", split, (place,), (label,)) if label else None

    for split in ("train", "test"):
        yield from _read_named(files, report, f"{split}/*", r"([a-z]+)_\d+", read)


VOCALSOUND = DataSet(
    name="vocalsound",
    title="VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs",
    url="https://github.com/YuanGongND/vocalsound",
    licence="CC BY-SA 4.0",
    clips=21024,
    hours=20.5,
    gigabytes=4.5,
    splits=tuple(_VOCAL),
    expected=(
        *(Expected(f"datafiles/{name}.json", f"clips of {s}", group="tables") for s, name in _VOCAL.items()),
        Expected("*.{audio}", "the clips, as f0003_0_cough.wav"),
    ),
    read=_read_vocalsound,
    tests=("test",),
)
CREMA_D = DataSet(
    name="crema_d",
    title="CREMA-D: sentences spoken by 91 actors in six emotions",
    url="https://github.com/CheyneyComputerScience/CREMA-D",
    licence="ODbL 1.0",
    clips=7442,
    hours=5.3,
    gigabytes=0.6,
    splits=("train",),
    expected=(Expected("AudioWAV/*.{audio}", "the clips, as 1001_DFA_ANG_XX.wav"),),
    read=_read_crema,
    tests=("train",),
    note="no official splits; meta holds the speaker",
)
RAVDESS = DataSet(
    name="ravdess",
    title="RAVDESS: speech and song of 24 actors in eight emotions",
    url="https://zenodo.org/records/1188976",
    licence="CC BY-NC-SA 4.0",
    clips=2452,
    hours=2.6,
    gigabytes=0.45,
    splits=("speech", "song"),
    expected=(Expected("Actor_*/*.{audio}", "the clips, as 03-01-05-01-01-01-12.wav"),),
    read=_read_ravdess,
    tests=("speech", "song"),
    note="no official splits; meta holds the speaker",
)
SESA = DataSet(
    name="sesa",
    title="SESA: sounds for surveillance: gunshots, explosions, sirens, casual ones",
    url="https://zenodo.org/records/3519845",
    licence="CC BY 4.0",
    clips=585,
    hours=1.1,
    gigabytes=0.07,
    splits=("train", "test"),
    expected=(Expected("train/*.{audio}", "the clips"), Expected("test/*.{audio}", "the clips")),
    read=_read_sesa,
    tests=("test",),
)
