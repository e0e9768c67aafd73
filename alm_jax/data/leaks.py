"""The leak guard: clips to train on that an evaluation set holds too, found by what they are taken from and by how they
sound."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from alm_jax.audio.fingerprint import FORMAT, LEAST, Known
from alm_jax.audio.records import record_place
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import DataError
from alm_jax.core.files import write_text
from alm_jax.data.prints import file_prints, read_prints
from alm_jax.data.rows import RowSet, holds_rows, read_rows
from alm_jax.data.sets.builder import VERSION
from alm_jax.data.sets.index import CLIPS, beside_shard, prepared_clips, prepared_folder, shard_stem
from alm_jax.data.sets.names import recordings
from alm_jax.data.sets.registry import SETS
from alm_jax.data.tasks.clips import read_clips

Progress = Callable[[int, int], None]
_BY = ("file", "source", "sound")


@dataclass(frozen=True)
class Clips:
    """Some clips of a collection: `data/clotho:test`, `gs://bucket/data/fsd50k:val+test`, `rows.jsonl`.

    Attributes:
        source: a prepared set, a file of rows, or a manifest or folder of clips (`tasks.clips.read_clips`).
        split: one, several joined by `+`, or `all`.
    """

    source: str
    split: str = "all"

    @classmethod
    def of(cls, text: str) -> Clips:
        """What `SOURCE[:SPLIT]` says."""
        source, _, split = text.rpartition(":")
        return cls(source, split) if source and not set(split) & set("/\\") else cls(text)

    def __str__(self) -> str:
        return self.source if self.split == "all" else f"{self.source}:{self.split}"

    def paths(self) -> list[Path]:
        """By which they are heard, each once.

        Raises:
            DataError: there is none of these, or no such split.
        """
        if self.source != "shipped" and prepared_folder(self.source) is not None:
            return [path for path, _ in prepared_clips(self.source, self.split)]
        if not holds_rows(self.source):
            return list(dict.fromkeys(clip.path for clip in read_clips(self.source, split=self.split)))
        if self.split != "all":
            raise DataError(f"{self}: a file of rows has no splits; give {self.source}")
        return clips_of(read_rows(self.source, need_output=False))


@dataclass(frozen=True)
class Leak:
    """A clip to train on that is held out.

    Attributes:
        clip, held: the paths of the two. of: the collection that is held out.
        by: `file` (the two are one), `source` (they are taken from one recording) or `sound`. why: what tells.
    """

    clip: str
    held: str
    of: str
    by: str
    why: str


class Found(NamedTuple):
    """What a guard finds: the leaks, by path, and how many clips have too little sound to be told by it (silent,
    shorter than half a second or so, or unreadable)."""

    leaks: list[Leak]
    faint: int


class Kept(NamedTuple):
    """Rows that are trained on, the leaks for which others are left out, and what is held out."""

    rows: RowSet
    leaks: list[Leak]
    held: list[Clips]


def clips_of(rows: RowSet) -> list[Path]:
    """The clips that rows are about, each once."""
    return list(dict.fromkeys(rows.clip_path(clip) for row in rows.rows for clip in row.clips))


def beside(clips: Iterable[Path]) -> list[Clips]:
    """What is to be held out where nobody says: of the sets that are prepared in the folders where the clips stand,
    the splits that are published to test on (`DataSet.tests`). Of sets that papers test on all of, as on folds, that
    is what the clips are not of."""
    trained: dict[Path, set[str]] = defaultdict(set)
    for shard in {place[0] for clip in clips if (place := record_place(clip))}:
        trained[Path(shard).parent].add(_split(shard_stem(shard)))
    found = []
    for data in sorted({folder.parent.parent for folder in trained}):
        for folder in sorted(data.glob(f"*/{VERSION}")):
            dataset = SETS.get(folder.parent.name)
            there = {_split(path.stem) for path in (folder / CLIPS).glob("*-of-*.jsonl")}
            if dataset is None:
                continue
            of_all = set(dataset.tests) == set(dataset.splits)
            wanted = [split for split in dataset.tests if split in there]
            wanted = [split for split in wanted if not (of_all and split in trained[folder])]
            if wanted:
                found.append(Clips(str(folder.parent), "all" if set(wanted) == there else "+".join(wanted)))
    return found


class Guard:
    """Tells which clips are held out.

    Args:
        held: the collections. workers: processes that hear their files; prepared sets have been heard.
    """

    def __init__(self, held: Sequence[Clips], *, workers: int = 1, progress: Progress = lambda done, total: None):
        self.held = tuple(held)
        paths = {clip: str(clips) for clips in held for clip in clips.paths()}
        self._clips = [clip for part in _compared(list(paths), workers, progress) for clip in part]
        self._of = [paths[clip.path] for clip in self._clips]
        self._places = {clip.place: number for number, clip in enumerate(self._clips)}
        self._sources, self._guesses = defaultdict(list), defaultdict(list)
        for number, clip in enumerate(self._clips):
            for source in clip.sources:
                (self._guesses if clip.guessed else self._sources)[source].append(number)
        self._known = Known([clip.peaks for clip in self._clips])

    def __len__(self) -> int:
        return len(self._clips)

    def find(self, clips: Sequence[Path], *, workers: int = 1, progress: Progress = lambda done, total: None) -> Found:
        """The leaks among clips: of each clip one a collection that holds it, by the first of file, source and
        sound that tells."""
        found, faint = [], 0
        for part in _compared(clips, workers, progress):
            faint += sum(len(clip.peaks) < LEAST for clip in part)
            leaks: dict[tuple[Path, str], Leak] = {}
            for clip, number, by, why in (*self._by_origin(part), *self._by_sound(part)):
                of = self._of[number]
                leak = Leak(str(clip.path), str(self._clips[number].path), of, by, why)
                leaks.setdefault((clip.path, of), leak)
            found += leaks.values()
        return Found(sorted(found, key=lambda leak: (leak.clip, leak.of)), faint)

    def _by_origin(self, clips: Sequence[_Clip]) -> Iterator[tuple[_Clip, int, str, str]]:
        for clip in clips:
            if (number := self._places.get(clip.place)) is not None:
                yield clip, number, "file", "the same file"
        for clip in clips:
            for source in clip.sources:
                # A name alone tells of a source that is known to be one: of two names that look alike nothing is known.
                numbers = self._sources.get(source, []) + ([] if clip.guessed else self._guesses.get(source, []))
                told = [(number, _seconds(clip, self._clips[number])) for number in numbers]
                for number, seconds in sorted(told, key=lambda each: each[1] == _OTHER):
                    yield clip, number, "source", source + seconds

    def _by_sound(self, clips: Sequence[_Clip]) -> Iterator[tuple[_Clip, int, str, str]]:
        for match in sorted(self._known.find([clip.peaks for clip in clips]), key=lambda match: -match.peaks):
            why = f"{match.peaks} peaks, {match.alike:.0%} of them, {match.shift:+.2f} s"
            yield clips[match.clip], match.known, "sound", why


def leave_out(
    rows: RowSet,
    held: Sequence[Clips] | None,
    *,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Kept:
    """Rows without those about a clip that is held out. The leaks are kept in the cache, so that the same rows are not
    compared again.

    Args:
        held: None for what is prepared `beside` them.

    Raises:
        DataError: a collection cannot be read, or no row is left.
    """
    from filelock import FileLock

    clips = clips_of(rows)
    held = beside(clips) if held is None else list(held)
    if not (clips and held):
        return Kept(rows, [], held)
    kept = cache_dir() / "leaks" / f"{_digest(rows, held)}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # several processes may want the same at once
        if rows.stamp is not None and kept.is_file():
            leaks = [Leak(**json.loads(line)) for line in kept.read_text(encoding="utf-8").split("\n") if line]
        else:
            guard = Guard(held, workers=workers, progress=progress)
            leaks = guard.find(clips, workers=workers, progress=progress).leaks
            write_text(kept, report(leaks))
    if not leaks:
        return Kept(rows, [], held)
    leaked = {leak.clip for leak in leaks}
    good = [
        number
        for number, row in enumerate(rows.rows)
        if not any(str(rows.clip_path(clip)) in leaked for clip in row.clips)
    ]
    if not good:
        raise DataError(f"all {len(rows)} rows are about clips of {', '.join(map(str, held))}: train on others")
    return Kept(rows.choose(good), leaks, held)


def _digest(rows: RowSet, held: Sequence[Clips]) -> str:
    """Of all that leaks depend on; clips to train on are taken not to change under their names."""
    paths = [path for each in held for path in each.paths()]
    files = sorted({str(path) if (place := record_place(path)) is None else place[0] for path in paths})
    told = (FORMAT, rows.stamp, held, list(map(str, paths)), [(file, _stat(file)) for file in files])
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def report(leaks: Sequence[Leak]) -> str:
    """Leaks as JSON lines."""
    return "".join(json.dumps(asdict(leak), ensure_ascii=False) + "\n" for leak in leaks)


def counts(leaks: Sequence[Leak], held: Sequence[Clips]) -> dict[str, dict[str, int]]:
    """How many clips each collection holds, by file, source and sound."""
    found = Counter((leak.of, leak.by) for leak in leaks)
    return {str(each): {by: found[str(each), by] for by in _BY} for each in held}


class _Clip(NamedTuple):
    """A clip as it is compared.

    Attributes:
        path: as it was given. place: the same for the same file, however it is named.
        sources: recordings that it is taken from (`sets.base.Item.source`). guessed: by its name, which may deceive.
        span: which seconds of it, where that is known.
        peaks: its fingerprint.
    """

    path: Path
    place: str
    sources: tuple[str, ...]
    guessed: bool
    span: tuple[float, float] | None
    peaks: np.ndarray


_OTHER = ", other seconds"


def _seconds(clip: _Clip, held: _Clip) -> str:
    """Whether two clips of one recording are the same seconds of it."""
    if clip.span is None or held.span is None:
        return ""
    together = min(clip.span[1], held.span[1]) - max(clip.span[0], held.span[0])
    return f", {together:g} s in common" if together > 0 else _OTHER


def _compared(clips: Sequence[Path], workers: int, progress: Progress) -> Iterator[list[_Clip]]:
    """Clips with all that they are compared by, some hundreds at a time."""
    shards: dict[str, list[tuple[int, str, Path]]] = defaultdict(list)
    files = []
    for clip in clips:
        if place := record_place(clip):
            shards[place[0]].append((*place[1:], clip))
        else:
            files.append(clip)
    total, done = len(clips), 0
    progress(done, total)
    for shard, numbered in sorted(shards.items()):
        yield _of_shard(shard, numbered)
        done += len(numbered)
        progress(done, total)
    for part, prints in file_prints(files, workers=workers, progress=lambda heard, _: progress(done + heard, total)):
        yield [
            _Clip(path, os.path.realpath(path), recordings(path.stem, str(path.parent)), True, None, peaks)
            for path, peaks in zip(part, prints)
        ]


def _of_shard(shard: str, numbered: Sequence[tuple[int, str, Path]]) -> list[_Clip]:
    index, prints = beside_shard(shard)
    try:
        lines = [json.loads(line) for line in index.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{index}: cannot be read ({error}): prepare the set again") from None
    peaks, place = read_prints(prints), os.path.realpath(shard)
    clips = []
    for number, name, path in numbered:
        told = lines[number] if number < len(lines) else {}
        if told.get("id") != name:
            raise DataError(
                f"{shard}: record {number} is not {name}: the set was prepared anew, delete rows that were made from it"
            )
        sources = (told["source"],) if told.get("source") else _guessed(told)
        span = told.get("span") and tuple(told["span"])
        clips.append(_Clip(path, f"{place}#{number}", sources, "source" not in told, span, peaks[number]))
    return clips


def _guessed(told: Mapping[str, Any]) -> tuple[str, ...]:
    """OpenAQA names files of other sets, and says which sets."""
    return recordings(PurePosixPath(told["id"]).name, str(told.get("meta", {}).get("datasets", "")))


def _split(stem: str) -> str:
    return stem.rsplit("-", 3)[0]


def _stat(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
