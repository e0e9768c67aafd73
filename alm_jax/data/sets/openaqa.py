"""OpenAQA-5M (Gong et al. 2024): LTU's rows, gathered by clip."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from alm_jax.core.errors import DataError
from alm_jax.data.rows import RowSet, read_rows
from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files, opened


def _read(files: Files, report: Report, table: str) -> Iterator[Item]:
    with opened(files.root, files.table(table)) as path:
        try:
            rows = read_rows(path, max_bad_share=1.0)
        except DataError as error:
            report.add("broken table", table, str(error))
            return
        for bad in rows.bad:
            report.add("broken row", bad.where, f"{bad.field} {bad.problem}".strip())
        yield from _by_clip(rows)


def _by_clip(rows: RowSet) -> Iterator[Item]:
    """The rows stay in their file, and are read again clip by clip."""
    places: dict[str, array] = {}
    for i in range(len(rows)):
        for clip in rows[i].clips[:1]:
            places.setdefault(clip, array("q")).append(i)
    names: set[str] = set()
    for clip, numbers in places.items():
        path = PurePosixPath(clip)
        held = [rows[i] for i in numbers]
        name = f"{path.parent.name}/{path.stem}" if path.stem in names else path.stem
        names.add(name)
        yield Item(
            id=name,
            split="train",
            # Rows name the files of LTU's authors: the last parts of these paths find them elsewhere.
            audio=("/".join(path.parts[-2:]), path.name),
            questions=tuple((row.instruction, row.output) for row in held),
            meta={"tasks": [row.task for row in held], "datasets": sorted({row.dataset for row in held})},
        )


def _set(name: str, table: str, title: str) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        url="https://github.com/YuanGongND/ltu",
        licence="CC BY 4.0 for questions and answers; audio is that of the eight sets named",
        clips=845000,
        hours=None,
        gigabytes=None,
        splits=("train",),
        expected=(Expected(table, "the questions and answers"), Expected("*.{audio}", "the clips that they name")),
        read=partial(_read, table=table),
        shares=("audioset", "freesound"),
        bad_share=0.35,
        owns_folder=False,
        note="clips are found by the last parts of the paths in the rows",
    )


OPENAQA = _set("openaqa", "openaqa_5.6M.json", "OpenAQA: LTU's fourth stage, 5.6M questions, closed- and open-ended")
OPENAQA_CLOSED = _set("openaqa_closed", "all_closed_qa.json", "OpenAQA: LTU's third stage, 1.9M closed-ended questions")
OPENAQA_LABELS = _set("openaqa_labels", "combine_cla.json", "OpenAQA: LTU's first stages, 1.2M questions about labels")
