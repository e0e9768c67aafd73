"""VGGSound (Chen et al. 2020), one sound a video, and AVQA (Yang et al. 2022), questions about its videos."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import youtube
from alm_jax.data.sets.tables import fields, number, read_csv, read_json

_AVQA = {"train": "train_qa.json", "val": "val_qa.json"}


def _read_vggsound(files: Files, report: Report) -> Iterator[Item]:
    header = ("video", "start", "label", "split")
    for where, row in read_csv(files, files.table("vggsound.csv"), report, header, header=header):
        start = number(row["start"], where, report)
        if start is not None:
            yield Item(
                id=f"{row['video']}_{start:06.0f}",
                split=row["split"],
                audio=youtube(row["video"], start),
                labels=(row["label"],),
                source=f"youtube:{row['video']}",
                span=(start, start + 10),
            )


def _read_avqa(files: Files, report: Report) -> Iterator[Item]:
    for split, table in _AVQA.items():
        place = files.find(table)
        videos: dict[str, list[dict[str, Any]]] = {}
        for where, row in read_json(files, place, report) if place else ():
            told = fields(row, ("id", "video_name", "question_text", "answer"), where, report)
            choices = row.get("multi_choice")
            if told is None:
                continue
            if not (isinstance(choices, list) and isinstance(row["answer"], int) and row["answer"] < len(choices)):
                report.add("broken row", where, "answer is no number of a choice")
                continue
            question = {"question": told[2], "choices": [str(choice) for choice in choices], "answer": row["answer"]}
            kept = {"relation": row.get("question_relation"), "type": row.get("question_type")}
            videos.setdefault(told[1], []).append(question | {k: v for k, v in kept.items() if v})
        for video, questions in videos.items():
            name, _, start = video.rpartition("_")
            begin = int(start) if start.isdigit() else None
            yield Item(
                id=video,
                split=split,
                audio=(video,) if begin is None else youtube(name, begin),
                questions=tuple((each["question"], each["choices"][each["answer"]]) for each in questions),
                source=f"youtube:{name}",
                span=None if begin is None else (begin, begin + 10),
                meta={"asked": questions},
            )


VGGSOUND = DataSet(
    name="vggsound",
    title="VGGSound: 10 s of YouTube videos, each with one of 309 classes",
    url="https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
    licence="CC BY 4.0 for labels; audio from YouTube",
    clips=199176,
    hours=550.0,
    gigabytes=None,
    splits=("train", "test"),
    expected=(
        Expected("vggsound.csv", "the table of clips"),
        Expected("*.{audio}", "cuts of the videos, as ID_000030.wav"),
    ),
    read=_read_vggsound,
    tests=("test",),
    shares=("vggsound",),
    bad_share=0.35,
    owns_folder=False,
)

AVQA = DataSet(
    name="avqa",
    title="AVQA: questions with four choices about the sound and sight of VGGSound's videos",
    url="https://mn.cs.tsinghua.edu.cn/avqa/",
    licence="as its authors state; audio from YouTube",
    clips=57015,
    hours=158.0,
    gigabytes=None,
    splits=tuple(_AVQA),
    expected=(
        *(Expected(table, f"questions of {split}", group="tables") for split, table in _AVQA.items()),
        Expected("*.{audio}", "VGGSound's videos, or their sound"),
    ),
    read=_read_avqa,
    tests=("val",),
    shares=("vggsound",),
    bad_share=0.35,
    owns_folder=False,
    note="meta holds the choices of each question, and the answer's number",
)
