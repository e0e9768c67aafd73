"""ESC-50 (Piczak 2015): 50 environmental sounds, five folds."""

from __future__ import annotations

from collections.abc import Iterator

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import words
from alm_jax.data.sets.tables import read_csv

_FOLDS = ("fold1", "fold2", "fold3", "fold4", "fold5")


def _read(files: Files, report: Report) -> Iterator[Item]:
    columns = ("filename", "fold", "category", "src_file")
    for _, row in read_csv(files, files.table("meta/esc50.csv"), report, columns):
        yield Item(
            id=row["filename"].removesuffix(".wav"),
            split=f"fold{row['fold']}",
            audio=(f"audio/{row['filename']}",),
            labels=(words(row["category"]),),
            source=f"freesound:{row['src_file']}",
        )


ESC50 = DataSet(
    name="esc50",
    title="ESC-50: environmental sounds of 50 classes",
    url="https://github.com/karolpiczak/ESC-50",
    licence="CC BY-NC 3.0",
    clips=2000,
    hours=2.8,
    gigabytes=0.6,
    splits=_FOLDS,
    expected=(Expected("meta/esc50.csv", "the table of clips"), Expected("audio/*.{audio}", "the clips")),
    read=_read,
    tests=_FOLDS,
    shares=("freesound",),
    note="LTU is tested on all five folds",
)
