"""AudioSet: weak labels (Gemmeke et al. 2017), strong ones (Hershey et al. 2021), and the part that LTU trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import youtube
from alm_jax.data.sets.tables import number, read_csv
from alm_jax.data.tasks.clips import ClipEvent

_WEAK = {
    "balanced_train": "balanced_train_segments.csv",
    "unbalanced_train": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
_TRAIN = ("balanced_train", "unbalanced_train")
_STRONG = {"train": "audioset_train_strong.tsv", "eval": "audioset_eval_strong.tsv"}


def class_balanced(labels: list[tuple[str, ...]], count: int) -> list[int]:
    """LTU's selection (appendix P.1): the clips of most weight, a clip's being the sum over its classes of one over the
    number of clips that bear the class; ties go to the first. Indices, ascending."""
    bearing = Counter(label for each in labels for label in each)
    weights = np.array([sum(1 / bearing[label] for label in each) for each in labels])
    return sorted(np.argsort(-weights, kind="stable")[:count].tolist())


def _read_weak(files: Files, report: Report, splits: Iterable[str] = tuple(_WEAK)) -> Iterator[Item]:
    rows = read_csv(files, files.table("class_labels_indices.csv"), report, ("mid", "display_name"))
    names = {row["mid"]: row["display_name"] for _, row in rows}
    header = ("YTID", "start_seconds", "end_seconds", "positive_labels")
    for split in splits:
        place = files.find(_WEAK[split])
        for where, row in read_csv(files, place, report, header, header=header, comment="#") if place else ():
            start, end = (number(row[name], where, report) for name in ("start_seconds", "end_seconds"))
            if start is None or end is None:
                continue
            labels = _named(row["positive_labels"].split(","), names, where, report)
            if labels:
                yield Item(
                    id=f"{row['YTID']}_{start * 1000:.0f}",
                    split=split,
                    audio=youtube(row["YTID"], start, end),
                    labels=labels,
                    source=f"youtube:{row['YTID']}",
                    span=(start, end),
                )


def _read_ltu(files: Files, report: Report, count: int = 500_000) -> Iterator[Item]:
    """Of the clips that are there; the tables are read twice, so that no more than labels is held."""
    there: list[bool] = []
    labels: list[tuple[str, ...]] = []
    for item in _read_weak(files, report, _TRAIN):
        there.append(any(map(files.find, item.audio)))
        if there[-1]:
            labels.append(item.labels)
    chosen = set(class_balanced(labels, count))
    number = -1
    for item, found in zip(_read_weak(files, Report(), _TRAIN), there):
        number += found
        if found and number in chosen:
            yield replace(item, split="train")


def _read_strong(files: Files, report: Report) -> Iterator[Item]:
    rows = read_csv(
        files, files.table("mid_to_display_name.tsv"), report, ("mid", "name"), header=("mid", "name"), delimiter="\t"
    )
    names = {row["mid"]: row["name"] for _, row in rows}
    columns = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
    for split, table in _STRONG.items():
        place = files.find(table)
        clips: dict[str, list[ClipEvent]] = {}
        for where, row in read_csv(files, place, report, columns, delimiter="\t") if place else ():
            span = [number(row[name], where, report) for name in columns[1:3]]
            labels = _named([row["label"]], names, where, report)
            if None in span or not labels:
                continue
            if not 0 <= span[0] < span[1]:
                report.add("broken row", where, f"lasts from {span[0]:g} to {span[1]:g} s")
                continue
            clips.setdefault(row["segment_id"], []).append(ClipEvent(labels[0], *span))
        for segment, events in clips.items():
            video, _, start = segment.rpartition("_")
            begin = int(start) / 1000 if start.isdigit() else None
            events = tuple(sorted(events, key=lambda event: (event.onset, event.label)))
            yield Item(
                id=segment,
                split=split,
                audio=(segment,) if begin is None else youtube(video, begin),
                labels=tuple(dict.fromkeys(event.label for event in events)),
                events=events,
                source=f"youtube:{video}",
                span=None if begin is None else (begin, begin + 10),
            )


def _named(mids: list[str], names: dict[str, str], where: str, report: Report) -> tuple[str, ...]:
    mids = [mid.strip() for mid in mids]
    if unknown := [mid for mid in mids if mid not in names]:
        report.add("label outside the ontology", where, "; ".join(unknown))
    return tuple(names[mid] for mid in mids if mid in names)


_HAD = "https://research.google.com/audioset/download.html"
_SOUND = Expected("*.{audio}", "cuts of the videos, named by YouTube id (and start)")
_LICENCE = "CC BY 4.0 for labels, CC BY-SA 4.0 for the ontology; audio from YouTube"
_CLASSES = Expected("class_labels_indices.csv", "the 527 classes")

AUDIOSET = DataSet(
    name="audioset",
    title="AudioSet: 10 s of YouTube videos with the labels of 527 classes",
    url=_HAD,
    licence=_LICENCE,
    clips=2084320,
    hours=5790.0,
    gigabytes=None,
    splits=tuple(_WEAK),
    expected=(_CLASSES, *(Expected(file, f"clips of {s}", group="tables") for s, file in _WEAK.items()), _SOUND),
    read=_read_weak,
    tests=("eval",),
    shares=("audioset",),
    bad_share=0.35,
    owns_folder=False,
)

AUDIOSET_LTU = DataSet(
    name="audioset_ltu",
    title="AudioSet-500K: the clips to train on with the most, and the rarest, classes (LTU)",
    url=_HAD,
    licence=_LICENCE,
    clips=500000,
    hours=1390.0,
    gigabytes=None,
    splits=("train",),
    expected=(
        _CLASSES,
        *(Expected(_WEAK[s], f"clips of {s}", group="tables") for s in _TRAIN),
        _SOUND,
    ),
    read=_read_ltu,
    shares=("audioset",),
    bad_share=0.35,
    owns_folder=False,
    note="chosen among the clips whose sound is there, as LTU chose among 1,772,023",
)

AUDIOSET_STRONG = DataSet(
    name="audioset_strong",
    title="AudioSet with the beginning and end of each sound, 447 classes",
    url="https://research.google.com/audioset/download_strong.html",
    licence=_LICENCE,
    clips=120000,
    hours=333.0,
    gigabytes=None,
    splits=("train", "eval"),
    expected=(
        Expected("mid_to_display_name.tsv", "the classes"),
        *(Expected(file, f"sounds of {s}", group="tables") for s, file in _STRONG.items()),
        _SOUND,
    ),
    read=_read_strong,
    tests=("eval",),
    shares=("audioset",),
    bad_share=0.35,
    owns_folder=False,
)
