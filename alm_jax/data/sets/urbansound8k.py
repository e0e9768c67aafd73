"""UrbanSound8K (Salamon et al. 2014): 10 urban sounds, ten folds."""

from __future__ import annotations

from collections.abc import Iterator

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import words
from alm_jax.data.sets.tables import read_csv

_FOLDS = tuple(f"fold{fold}" for fold in range(1, 11))


def _read(files: Files, report: Report) -> Iterator[Item]:
    columns = ("slice_file_name", "fsID", "fold", "class")
    for _, row in read_csv(files, files.table("metadata/UrbanSound8K.csv"), report, columns):
        yield Item(
            id=row["slice_file_name"].removesuffix(".wav"),
            split=f"fold{row['fold']}",
            audio=(f"fold{row['fold']}/{row['slice_file_name']}",),
            labels=(words(row["class"]),),
            source=f"freesound:{row['fsID']}",
            meta={"salience": row["salience"]} if row.get("salience") else {},
        )


URBANSOUND8K = DataSet(
    name="urbansound8k",
    title="UrbanSound8K: urban sounds of 10 classes",
    url="https://zenodo.org/records/1203745",
    licence="CC BY-NC 4.0",
    clips=8732,
    hours=8.8,
    gigabytes=6.0,
    splits=_FOLDS,
    expected=(
        Expected("metadata/UrbanSound8K.csv", "the table of clips"),
        Expected("audio/fold*/*.{audio}", "the clips"),
    ),
    read=_read,
    tests=_FOLDS,
    shares=("freesound",),
)
