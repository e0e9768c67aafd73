"""Music: GTZAN, Beijing Opera, MusicCaps, Song Describer and MusicQA; and MACS, captions of scenes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files, path_of
from alm_jax.data.sets.names import youtube
from alm_jax.data.sets.tables import Row, decode, fields, number, read_csv, read_json

_GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
_OPERA = {"bangu": "clapper-drum", "banggu": "clapper-drum", "naobo": "cymbals", "daluo": "large gong"}
_OPERA |= {"xiaoluo": "small gong"}
_MUSICQA = {"pretrain": "PretrainMusicQA.json", "train": "FinetuneMusicQA.json", "test": "EvalMusicQA.json"}


def _read_gtzan(files: Files, report: Report) -> Iterator[Item]:
    for place in files.sounds("*/*"):
        path = path_of(place)
        if path.parent.name in _GENRES:
            label = path.parent.name.replace("hiphop", "hip hop")
            yield Item(path.stem, "train", (place,), (label,))
        else:
            report.add("label outside the ontology", place, f"{path.parent.name} is no genre of the set")


def _read_opera(files: Files, report: Report) -> Iterator[Item]:
    for place in files.sounds():
        path = path_of(place)
        named = f"{path.parent.name}/{path.stem}".lower()
        labels = {label for name, label in _OPERA.items() if name in named}
        if len(labels) == 1:
            yield Item(path.stem, "test", (place,), (labels.pop(),))
        else:
            report.add("label outside the ontology", place, f"named after none of {', '.join(_OPERA)}")


def _read_musiccaps(files: Files, report: Report) -> Iterator[Item]:
    columns = ("ytid", "start_s", "end_s", "caption", "is_audioset_eval")
    place = files.table("musiccaps-public.csv")
    for where, row in read_csv(files, place, report, columns):
        start, end = (number(row[name], where, report) for name in ("start_s", "end_s"))
        if start is not None and end is not None:
            yield Item(
                id=f"{row['ytid']}_{start:.0f}",
                split="eval" if row["is_audioset_eval"].lower() == "true" else "train",
                audio=youtube(row["ytid"], start, end),
                captions=(row["caption"],),
                source=f"youtube:{row['ytid']}",
                span=(start, end),
                meta={"aspects": row["aspect_list"]} if row.get("aspect_list") else {},
            )


def _read_song_describer(files: Files, report: Report) -> Iterator[Item]:
    tracks: dict[str, list[Row]] = {}
    columns = ("caption_id", "track_id", "caption", "path")
    for _, row in read_csv(files, files.table("song_describer.csv"), report, columns):
        tracks.setdefault(row["track_id"], []).append(row)
    for track, rows in tracks.items():
        path = PurePosixPath(rows[0]["path"])
        valid = [row["caption"] for row in rows if row.get("is_valid_subset", "").lower() == "true"]
        yield Item(
            id=track,
            split="test",
            audio=(str(path), str(path.with_suffix("")) + ".2min.mp3", f"{path.stem}.2min.mp3"),
            captions=tuple(row["caption"] for row in rows),
            source=f"jamendo:{track}",
            meta={"valid": valid} if valid else {},
        )


def _read_musicqa(files: Files, report: Report) -> Iterator[Item]:
    for split, table in _MUSICQA.items():
        place = files.find(table)
        clips: dict[str, list[tuple[str, str]]] = {}
        for where, row in read_json(files, place, report) if place else ():
            told = fields(row, ("audio_name",), where, report)
            said = row.get("conversation")
            if told is not None and (pairs := _pairs(said)):
                clips.setdefault(told[0], []).extend(pairs)
            elif told is not None:
                report.add("broken row", where, "no question with an answer in its conversation")
        for name, pairs in clips.items():
            yield Item(PurePosixPath(name).stem, split, (f"audios/{name}", name), questions=tuple(pairs))


def _pairs(said: Any) -> list[tuple[str, str]]:
    texts = [turn.get("value") for turn in said if isinstance(turn, dict)] if isinstance(said, list) else []
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return []
    return [(question.strip(), answer.strip()) for question, answer in zip(texts[::2], texts[1::2])]


def _texts(told: Any) -> list[str]:
    return [each for each in told if isinstance(each, str)] if isinstance(told, list) else []


def _read_macs(files: Files, report: Report) -> Iterator[Item]:
    import yaml

    place = files.table("MACS.yaml")
    try:
        listed = yaml.safe_load(decode(files.read(place), place, report))["files"]
        if not isinstance(listed, list):
            raise TypeError
    except (yaml.YAMLError, KeyError, TypeError) as error:
        report.add("broken table", place, f"not the YAML that is expected ({type(error).__name__})")
        return
    for i, row in enumerate(listed):
        told = row.get("annotations") if isinstance(row, dict) else None
        told = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
        captions = [each["sentence"] for each in told if each.get("sentence") and isinstance(each["sentence"], str)]
        if not captions or not isinstance(row.get("filename"), str):
            report.add("broken row", f"{place}[{i}]", "no filename, or no annotation with a sentence")
            continue
        stem = row["filename"].removesuffix(".wav")
        tags = sorted({tag for each in told for tag in _texts(each.get("tags"))})
        yield Item(
            id=stem,
            split="train",
            audio=(stem,),
            captions=tuple(captions),
            source=f"tau2019:{stem}",
            meta={"tags": tags, "scene": stem.partition("-")[0].replace("_", " ")},
        )


GTZAN = DataSet(
    name="gtzan",
    title="GTZAN: 30 s of music of ten genres",
    url="https://huggingface.co/datasets/marsyas/gtzan",
    licence="none stated; for research",
    clips=1000,
    hours=8.3,
    gigabytes=1.2,
    splits=("train",),
    expected=(Expected("blues/*.{audio}", "the clips, a folder a genre"),),
    read=_read_gtzan,
    tests=("train",),
    note="no official splits; jazz.00054 is damaged as published",
)
BEIJING_OPERA = DataSet(
    name="beijing_opera",
    title="Beijing Opera percussion: strokes of four instruments",
    url="https://zenodo.org/records/1285212",
    licence="as CompMusic states, for research",
    clips=236,
    hours=0.1,
    gigabytes=0.05,
    splits=("test",),
    expected=(Expected("*.{audio}", "the strokes, named after bangu, naobo, daluo or xiaoluo"),),
    read=_read_opera,
    tests=("test",),
    note="labels in English, as LTU has them",
)
MUSICCAPS = DataSet(
    name="musiccaps",
    title="MusicCaps: AudioSet's music with captions by musicians",
    url="https://huggingface.co/datasets/google/MusicCaps",
    licence="CC BY-SA 4.0 for captions; audio from YouTube",
    clips=5521,
    hours=15.3,
    gigabytes=None,
    splits=("train", "eval"),
    expected=(
        Expected("musiccaps-public.csv", "the captions"),
        Expected("*.{audio}", "cuts of the videos, named by YouTube id (and start)"),
    ),
    read=_read_musiccaps,
    tests=("eval",),
    shares=("audioset",),
    bad_share=0.35,
    owns_folder=False,
)
SONG_DESCRIBER = DataSet(
    name="song_describer",
    title="Song Describer: 2 min of Jamendo's songs with captions",
    url="https://zenodo.org/records/10072001",
    licence="CC BY-SA 4.0 for captions; of each song as its author chose",
    clips=706,
    hours=23.5,
    gigabytes=3.3,
    splits=("test",),
    expected=(Expected("song_describer.csv", "the captions"), Expected("*.mp3", "the songs")),
    read=_read_song_describer,
    tests=("test",),
    shares=("jamendo",),
    note="meta holds the captions of the valid subset",
)
MUSICQA = DataSet(
    name="musicqa",
    title="MusicQA: questions about music by a language model (MU-LLaMA)",
    url="https://huggingface.co/datasets/mu-llama/MusicQA",
    licence="as its card states; audio of MusicCaps, MagnaTagATune and MTG-Jamendo",
    clips=12542,
    hours=76.2,
    gigabytes=None,
    splits=tuple(_MUSICQA),
    expected=(
        *(Expected(table, f"questions of {split}", group="tables") for split, table in _MUSICQA.items()),
        Expected("audios/*.{audio}", "the clips"),
    ),
    read=_read_musicqa,
    tests=("test",),
    shares=("audioset", "jamendo"),
)
MACS = DataSet(
    name="macs",
    title="MACS: captions of TAU Urban Acoustic Scenes 2019",
    url="https://zenodo.org/records/5114771",
    licence="Tampere University's own, for research",
    clips=3930,
    hours=10.9,
    gigabytes=13.0,
    splits=("train",),
    expected=(
        Expected("MACS.yaml", "the captions"),
        Expected("*.{audio}", "TAU Urban Acoustic Scenes 2019 development, https://zenodo.org/records/2589280"),
    ),
    read=_read_macs,
    tests=("train",),
    shares=("tau2019",),
    owns_folder=False,
)
