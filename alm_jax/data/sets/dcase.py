"""DCASE 2017 task 4 (17 sounds of traffic) and TUT Acoustic Scenes 2017 (15 scenes), both Mesaros et al."""

from __future__ import annotations

from collections.abc import Iterator

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import words
from alm_jax.data.sets.tables import number, read_csv
from alm_jax.data.tasks.clips import ClipEvent

_TASK4 = {"train": "training", "test": "testing", "eval": "evaluation"}
_ROW = ("file", "start", "end", "label")


def _read_task4(files: Files, report: Report) -> Iterator[Item]:
    for split, published in _TASK4.items():
        events: dict[str, list[ClipEvent]] = {}
        strong = files.find(f"groundtruth_strong_label_{published}_set.csv")
        for where, row in read_csv(files, strong, report, _ROW, header=_ROW, delimiter="\t") if strong else ():
            onset, offset = (number(row[name], where, report) for name in ("start", "end"))
            if onset is not None and offset is not None and 0 <= onset < offset:
                events.setdefault(row["file"], []).append(ClipEvent(row["label"], onset, offset))
        labels: dict[str, list[str]] = {}
        weak = files.find(f"groundtruth_weak_label_{published}_set.csv")
        for _, row in read_csv(files, weak, report, _ROW, header=_ROW, delimiter="\t") if weak else ():
            labels.setdefault(row["file"], []).append(row["label"])
        for file, named in labels.items():
            stem = file.removesuffix(".wav")
            video, *times = stem.rsplit("_", 2)
            yield Item(
                id=stem,
                split=split,
                audio=(f"Y{stem}", stem),
                labels=tuple(dict.fromkeys(named)),
                events=tuple(sorted(events.get(file, ()), key=lambda event: (event.onset, event.label))),
                source=f"youtube:{video}",
                span=_span(times),
            )


def _span(times: list[str]) -> tuple[float, float] | None:
    try:
        start, end = map(float, times)
    except ValueError:
        return None
    return start, end


def _read_scenes(files: Files, report: Report) -> Iterator[Item]:
    for split, part in (("dev", "development"), ("eval", "evaluation")):
        folder = f"TUT-acoustic-scenes-2017-{part}"
        header = ("file", "scene", "recording")
        place = files.find(f"{folder}/meta.txt") or files.find(f"{folder}/evaluation_setup/evaluate.txt")
        for _, row in read_csv(files, place, report, header[:2], header=header, delimiter="\t") if place else ():
            yield Item(
                id=f"{split}/{row['file'].removeprefix('audio/').removesuffix('.wav')}",
                split=split,
                audio=(f"{folder}/{row['file']}",),
                labels=(words(row["scene"]),),
                meta={"recording": row["recording"]} if row.get("recording") else {},
            )


DCASE2017 = DataSet(
    name="dcase2017_task4",
    title="DCASE 2017 task 4: 17 sounds of warnings and vehicles, from AudioSet",
    url="https://github.com/ankitshah009/Task-4-Large-scale-weakly-supervised-sound-event-detection-for-smart-cars",
    licence="CC BY 4.0 for labels; audio from YouTube",
    clips=52763,
    hours=146.0,
    gigabytes=None,
    splits=tuple(_TASK4),
    expected=(
        *(
            Expected(f"groundtruth_weak_label_{name}_set.csv", f"labels of {split}", group="tables")
            for split, name in _TASK4.items()
        ),
        Expected("Y*.{audio}", "the clips, as YID_30.000_40.000.wav"),
    ),
    read=_read_task4,
    tests=("test", "eval"),
    shares=("audioset",),
    bad_share=0.05,
    note="the events of `test` and `eval` come from groundtruth_strong_label_*.csv where they are there",
)

TUT2017 = DataSet(
    name="tut2017",
    title="TUT Acoustic Scenes 2017: 10 s of 15 scenes",
    url="https://zenodo.org/records/400515 (development), https://zenodo.org/records/1040168 (evaluation)",
    licence="Tampere University's own, for research",
    clips=6300,
    hours=17.5,
    gigabytes=15.0,
    splits=("dev", "eval"),
    expected=(
        Expected("TUT-acoustic-scenes-2017-development/meta.txt", "the clips to train on", group="tables"),
        Expected("TUT-acoustic-scenes-2017-evaluation/meta.txt", "the clips to test on", group="tables"),
        Expected(
            "TUT-acoustic-scenes-2017-evaluation/evaluation_setup/evaluate.txt", "the clips to test on", group="tables"
        ),
        Expected("audio/*.{audio}", "the clips"),
    ),
    read=_read_scenes,
    tests=("eval",),
)
