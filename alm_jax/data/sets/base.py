"""What a published data set is: where it is had, which files it has, and how its clips are read from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alm_jax.core.errors import DataError
from alm_jax.data.tasks.clips import ClipEvent

if TYPE_CHECKING:
    from alm_jax.data.sets.files import Files


@dataclass(frozen=True)
class Item:
    """A clip as the tables of its set describe it.

    Attributes:
        id: unique in the set.
        split: one of the set's.
        audio: names that its file may have, in order: the last parts of its path, its suffix left out or not.
        labels, captions, events, questions: as of `LabelledClip`.
        source: the recording that it is taken from, `youtube:ID` or `freesound:ID`; empty if nobody says.
        span: which of its seconds, where somebody says.
        meta: what else the set says: choices, folds, ...
    """

    id: str
    split: str
    audio: tuple[str, ...]
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    events: tuple[ClipEvent, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    source: str = ""
    span: tuple[float, float] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """All but the audio, as JSON."""
        told = {
            "id": self.id,
            "split": self.split,
            "labels": list(self.labels),
            "captions": list(self.captions),
            "events": [[event.label, event.onset, event.offset] for event in self.events],
            "questions": [list(pair) for pair in self.questions],
            "source": self.source,
            "span": self.span and list(self.span),
            "meta": dict(self.meta),
        }
        return {name: value for name, value in told.items() if value}


class Report:
    """What is wrong with a set's files: kind, place and detail of each problem, in the order found."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str, str]] = []

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Note a problem."""
        self.problems.append((kind, where, detail))

    def __len__(self) -> int:
        return len(self.problems)

    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind, most first."""
        return dict(Counter(kind for kind, _, _ in self.problems).most_common())

    def text(self) -> str:
        """The report as JSON lines."""
        lines = ({"problem": kind, "where": where, "detail": detail} for kind, where, detail in self.problems)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@dataclass(frozen=True)
class Expected:
    """Files that a set has.

    Attributes:
        pattern: the last parts of their paths, `*` and the like allowed; `{audio}` stands for any suffix of sound.
        what: in words.
        group: of several with the same name one is enough, such as the tables of a set's splits.
    """

    pattern: str
    what: str
    group: str = ""


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
        name, title: how commands and people call it.
        url: where it is had. licence: of its annotations and audio, as its authors state it.
        clips, hours, gigabytes: as published; None where nobody says.
        splits: the official ones.
        expected: the files that are needed.
        read: its clips, from a folder's files; what cannot be read is reported.
        tests: those that are published to test on; all where papers test on all (folds, sets without a part to train).
        shares: collections that other sets take clips from too.
        labels: the ontology, where it is fixed; clips keep no other label.
        bad_share: share of problems that is usual, as where videos are no longer to be had.
        owns_folder: no audio but the set's belongs in its folder, and other files are reported.
        note: what else one should know.
    """

    name: str
    title: str
    url: str
    licence: str
    clips: int | None
    hours: float | None
    gigabytes: float | None
    splits: tuple[str, ...]
    expected: tuple[Expected, ...]
    read: Callable[[Files, Report], Iterator[Item]]
    tests: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    bad_share: float = 0.01
    owns_folder: bool = True
    note: str = ""

    def check(self, files: Files) -> None:
        """Raise DataError that names every expected file which is not there."""
        groups: dict[str, list[Expected]] = {}
        for expected in self.expected:
            groups.setdefault(expected.group or expected.pattern, []).append(expected)
        missing = [group for group in groups.values() if not any(files.has(each.pattern) for each in group)]
        if missing:
            told = "; ".join(" or ".join(f"{each.pattern} ({each.what})" for each in group) for group in missing)
            packed = f"; extract {', '.join(files.packed[:3])} first" if files.packed else ""
            raise DataError(f"{files.root}: {self.name} lacks {told}{packed}; it is had at {self.url}")
