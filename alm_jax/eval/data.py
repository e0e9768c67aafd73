"""What benchmarks are asked about: prepared data sets, manifests of clips, and files of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alm_jax.core.errors import DataError
from alm_jax.data.rows import RowSet, holds_rows, read_rows
from alm_jax.data.sets.index import prepared_clips, prepared_folder
from alm_jax.data.tasks.clips import LabelledClip, read_clips

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Collection:
    """Clips of one split, or rows that somebody else made of them.

    Attributes:
        clips: those of the split. classes: labels of all splits, in the alphabet's order.
        about: by path, what a prepared set says of a clip besides (choices of its question, ...).
        rows: questions that are asked as they are, in the place of those that a protocol would make.
    """

    clips: tuple[LabelledClip, ...] = ()
    classes: tuple[str, ...] = ()
    about: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    rows: RowSet | None = None


def read_collection(source: str | Path, dataset: str, split: str) -> Collection:
    """Read what lies at `source`.

    Args:
        source: a prepared set (`alm data prepare`), a manifest of clips (`data.tasks.clips.read_clips`), or a file of
            rows (`alm tasks`); or a folder with one of these, named as the data set.
        dataset: name of the set that is meant. split: one, several joined by `+`, or `all`; a manifest that names no
            splits is taken whole.

    Raises:
        DataError: there is none of these, or no clip in the split.
    """
    place = within(source, dataset) or source
    if holds_rows(place):
        return Collection(rows=read_rows(place, need_output=False))
    every = read_clips(place)
    prepared = str(source) != "shipped" and prepared_folder(place) is not None
    about = {path: told.get("meta", {}) for path, told in prepared_clips(place)} if prepared else {}
    named = {clip.split for clip in every} - {""}
    wanted = named if split == "all" else set(split.split("+"))
    if named and not wanted & named:
        raise DataError(f"{place}: no clip is of split {split}; it has {', '.join(sorted(named))} (--split names one)")
    chosen = tuple(clip for clip in every if not named or clip.split in wanted)
    return Collection(chosen, tuple(sorted({label for clip in every for label in clip.labels})), about)


def within(source: str | Path, dataset: str) -> Path | None:
    """What a folder of several sets holds of this one."""
    names = (dataset, *(f"{dataset}{suffix}" for suffix in _SUFFIXES))
    return next((path for name in names if dataset and (path := Path(source).expanduser() / name).exists()), None)
