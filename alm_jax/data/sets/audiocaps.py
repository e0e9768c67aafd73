"""AudioCaps (Kim et al. 2019): captions of AudioSet's clips."""

from __future__ import annotations

from collections.abc import Iterator

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import youtube
from alm_jax.data.sets.tables import Row, number, read_csv

_SPLITS = ("train", "val", "test")


def _read(files: Files, report: Report) -> Iterator[Item]:
    for split in _SPLITS:
        place = files.find(f"dataset/{split}.csv") or files.find(f"{split}.csv")
        columns = ("audiocap_id", "youtube_id", "start_time", "caption")
        clips: dict[tuple[str, float], list[Row]] = {}  # rows of one clip are its captions
        for where, row in read_csv(files, place, report, columns) if place else ():
            start = number(row["start_time"], where, report)
            if start is not None:
                clips.setdefault((row["youtube_id"], start), []).append(row)
        for (video, start), rows in clips.items():
            yield Item(
                id=f"{video}_{start:.0f}",
                split=split,
                audio=(*youtube(video, start), *(row["audiocap_id"] for row in rows)),
                captions=tuple(row["caption"] for row in rows),
                source=f"youtube:{video}",
                span=(start, start + 10),
            )


AUDIOCAPS = DataSet(
    name="audiocaps",
    title="AudioCaps: AudioSet's clips with captions by people, one to train on, five to test on",
    url="https://github.com/cdjkim/audiocaps",
    licence="MIT for captions; audio from YouTube",
    clips=51308,
    hours=142.5,
    gigabytes=None,
    splits=_SPLITS,
    expected=(
        *(Expected(f"{split}.csv", f"captions of {split}", group="tables") for split in _SPLITS),
        Expected("*.{audio}", "cuts of the videos, named by youtube_id or audiocap_id"),
    ),
    read=_read,
    tests=("test",),
    shares=("audioset",),
    bad_share=0.35,
    owns_folder=False,
)
