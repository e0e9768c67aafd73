"""Clotho v2 (Drossos et al. 2020) and Clotho-AQA (Lipping et al. 2022): captions, and questions with answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.tables import Row, read_csv

_SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
_CAPTIONS = tuple(f"caption_{i}" for i in range(1, 6))


def _read_captions(files: Files, report: Report) -> Iterator[Item]:
    for published, split in _SPLITS.items():
        place = files.find(f"clotho_captions_{published}.csv")
        if place is None:
            continue
        sources = _sources(files, report, f"clotho_metadata_{published}.csv")
        for _, row in read_csv(files, place, report, ("file_name", *_CAPTIONS)):
            name = row["file_name"]
            yield Item(
                id=f"{published}/{name.removesuffix('.wav')}",
                split=split,
                audio=(f"{published}/{name}", f"clotho_audio_{published}/{name}"),
                captions=tuple(row[column] for column in _CAPTIONS),
                source=sources.get(name, ""),
            )


def _read_questions(files: Files, report: Report) -> Iterator[Item]:
    sources = _sources(files, report, "clotho_aqa_metadata.csv")
    for split in _SPLITS.values():
        place = files.find(f"clotho_aqa_{split}.csv")
        clips: dict[str, list[Row]] = {}
        for _, row in read_csv(files, place, report, ("file_name", "QuestionText", "answer")) if place else ():
            clips.setdefault(row["file_name"], []).append(row)
        for name, rows in clips.items():
            yield Item(
                id=name.removesuffix(".wav"),
                split=split,
                audio=(f"audio_files/{name}", name),
                questions=tuple((row["QuestionText"], row["answer"]) for row in rows),
                source=sources.get(name, ""),
                meta=_answers(rows),
            )


def _answers(rows: list[Row]) -> dict[str, Any]:
    """The three annotators' answers to each question, and which of them most gave."""
    answers: dict[str, list[str]] = {}
    for row in rows:
        answers.setdefault(row["QuestionText"], []).append(row["answer"])
    most = {question: Counter(given).most_common(1)[0] for question, given in answers.items()}
    return {"answers": answers, "majority": {question: answer for question, (answer, n) in most.items() if n > 1}}


def _sources(files: Files, report: Report, table: str) -> dict[str, str]:
    """Freesound's number of each clip; what has none there is left out."""
    place = files.find(table)
    rows = read_csv(files, place, report, ("file_name", "sound_id")) if place else ()
    return {row["file_name"]: f"freesound:{row['sound_id']}" for _, row in rows if row["sound_id"].isdigit()}


CLOTHO = DataSet(
    name="clotho",
    title="Clotho v2.1: Freesound clips, each with five captions",
    url="https://zenodo.org/records/4783391",
    licence="Tampere University's own for captions (research); of each clip as its author chose",
    clips=5929,
    hours=37.0,
    gigabytes=11.0,
    splits=("train", "val", "test"),
    expected=(
        *(Expected(f"clotho_captions_{name}.csv", f"captions of the {name} split", group="tables") for name in _SPLITS),
        *(
            Expected(f"{folder}/*.{{audio}}", "the clips, extracted from the 7z", group="clips")
            for name in _SPLITS
            for folder in (name, f"clotho_audio_{name}")
        ),
    ),
    read=_read_captions,
    tests=("test",),
    shares=("freesound",),
    note="splits are the published development, validation and evaluation",
)

CLOTHO_AQA = DataSet(
    name="clotho_aqa",
    title="Clotho-AQA: questions about Clotho's clips, each answered by three people",
    url="https://zenodo.org/records/6473207",
    licence="MIT; of each clip as its author chose",
    clips=1991,
    hours=12.4,
    gigabytes=4.0,
    splits=("train", "val", "test"),
    expected=(
        *(Expected(f"clotho_aqa_{split}.csv", f"questions of {split}", group="tables") for split in _SPLITS.values()),
        Expected("*.wav", "the clips"),
    ),
    read=_read_questions,
    tests=("test",),
    shares=("freesound", "clotho"),
    owns_folder=False,
    note="meta holds all answers to a question, and the one that two of three gave",
)
