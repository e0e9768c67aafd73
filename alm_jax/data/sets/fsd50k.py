"""FSD50K (Fonseca et al. 2022): Freesound clips with 200 classes of the AudioSet ontology."""

from __future__ import annotations

from collections.abc import Iterator

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.names import words
from alm_jax.data.sets.tables import read_csv


def _read(files: Files, report: Report) -> Iterator[Item]:
    known = {
        row["label"]
        for _, row in read_csv(
            files, files.table("vocabulary.csv"), report, ("label",), header=("index", "label", "mid")
        )
    }
    for table, folder, columns in (
        ("FSD50K.ground_truth/dev.csv", "FSD50K.dev_audio", ("fname", "labels", "split")),
        ("FSD50K.ground_truth/eval.csv", "FSD50K.eval_audio", ("fname", "labels")),
    ):
        place = files.find(table)
        for where, row in read_csv(files, place, report, columns) if place else ():
            labels = row["labels"].split(",")
            if unknown := [label for label in labels if label not in known]:
                report.add("label outside the ontology", where, "; ".join(unknown))
            if labels := [label for label in labels if label in known]:
                yield Item(
                    id=row["fname"],
                    split=row.get("split") or "test",
                    audio=(f"{folder}/{row['fname']}",),
                    labels=tuple(map(words, labels)),
                    source=f"freesound:{row['fname']}",
                )


FSD50K = DataSet(
    name="fsd50k",
    title="FSD50K: Freesound clips with the labels of 200 classes",
    url="https://zenodo.org/records/4060432",
    licence="CC BY 4.0; of each clip as its author chose (CC0, BY, BY-NC, Sampling+)",
    clips=51197,
    hours=108.3,
    gigabytes=24.0,
    splits=("train", "val", "test"),
    expected=(
        Expected("FSD50K.ground_truth/vocabulary.csv", "the classes"),
        Expected("FSD50K.ground_truth/dev.csv", "clips to train on and to validate", group="tables"),
        Expected("FSD50K.ground_truth/eval.csv", "clips to test on", group="tables"),
        Expected("FSD50K.dev_audio/*.{audio}", "their sound", group="clips"),
        Expected("FSD50K.eval_audio/*.{audio}", "their sound", group="clips"),
    ),
    read=_read,
    tests=("test",),
    shares=("freesound",),
)
