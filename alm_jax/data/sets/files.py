"""The files of a set's folder and of the archives in it, found by the last parts of their paths."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from os.path import splitext
from pathlib import Path, PurePosixPath

from alm_jax.core.errors import DataError
from alm_jax.data.manifest import AUDIO_SUFFIXES
from alm_jax.data.sets.base import Report

SOUND_SUFFIXES = AUDIO_SUFFIXES | {".au", ".mp4", ".mkv", ".m4v", ".aac"}
_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".txt", ".yaml", ".yml"}
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".zst")
_MEMBER = re.compile(r"(.*?\.(?:zip|tar))!(.*)", re.IGNORECASE | re.DOTALL)  # `clips.zip!audio/a.wav`


class Files:
    """Places below a folder: relative paths, and `ARCHIVE!MEMBER` for members of zip and uncompressed tar archives.

    Attributes:
        root: the folder.
        packed: archives that cannot be read at random and have to be extracted.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, root: str | Path, report: Report):
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder; give the one that holds the set's files")
        self.packed: list[str] = []
        self._places: dict[str, list[str]] = {}  # by name, without a suffix of sound
        for place in self._walk(report):
            self._places.setdefault(_stem(place), []).append(place)

    def has(self, pattern: str) -> bool:
        """Whether a file's last parts match a pattern (`Expected.pattern`)."""
        parts = pattern.split("/")
        if not any(mark in pattern for mark in "*?[{"):
            return self.find(pattern) is not None
        return any(_matches(_parts(place), parts) for places in self._places.values() for place in places)

    def find(self, name: str) -> str | None:
        """The place whose last parts are these; where it is a sound, with any suffix of sound. Files come before
        members of archives, and short paths before long ones."""
        held = self._places.get(_stem(name))
        if held is None:
            return None
        wanted = _parts(name)
        sound = splitext(name)[1].lower() not in _TABLES
        found = [place for place in held if _ends(_parts(place), wanted, sound)]
        return (
            found[0]
            if len(found) == 1
            else min(found, key=lambda place: (bool(_member(place)[1]), len(place), place), default=None)
        )

    def table(self, name: str) -> str:
        """The place of a table that is needed.

        Raises:
            DataError: it is not there.
        """
        place = self.find(name)
        if place is None:
            raise DataError(f"{self.root}: no {name}")
        return place

    def sounds(self, pattern: str = "*") -> Iterator[str]:
        """The places of all sounds whose last parts match a pattern, sorted."""
        parts = pattern.split("/")
        found = (place for places in self._places.values() for place in places if _is_sound(place))
        yield from sorted(place for place in found if _matches(_parts(place), parts))

    def read(self, place: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with opened(self.root, place) as path:
                return path.read_bytes()
        except OSError as error:
            raise DataError(f"{place}: cannot be read ({error})") from None

    def stamp(self, place: str) -> tuple[int, int]:
        """Size and modification time (of a member: that of its archive)."""
        archive, member = _member(place)
        status = os.stat(os.path.join(self.root, archive))
        return (_size(self.root / archive, member) if member else status.st_size), status.st_mtime_ns

    def _walk(self, report: Report) -> Iterator[str]:
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders[:] = sorted(name for name in folders if not _hidden(name))
            below = "" if Path(folder) == self.root else f"{Path(folder).relative_to(self.root).as_posix()}/"
            for name in sorted(name for name in names if not _hidden(name)):
                place = f"{below}{name}"
                if name.lower().endswith((".zip", ".tar")):
                    yield from self._members(place, report)
                elif name.lower().endswith(_PACKED):
                    self.packed.append(place)
                else:
                    yield place

    def _members(self, archive: str, report: Report) -> Iterator[str]:
        try:
            names = _archive(self.root / archive)[1]
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            report.add("unreadable archive", archive, f"{error}: extract it, or download it again")
            return
        for name in names:
            if outside(name):
                report.add("path leaves the folder", f"{archive}!{name}")
            elif not any(_hidden(part) for part in name.split("/")):
                yield f"{archive}!{name}"


def outside(name: str) -> bool:
    """Whether a relative path, as a table writes it, leaves the folder that it starts from."""
    if ".." not in name:
        return False
    depth = 0
    for part in name.replace("\\", "/").split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


@contextmanager
def opened(root: Path, place: str) -> Iterator[Path]:
    """A file to read; a member of an archive is copied beside for as long."""
    archive, member = _member(place)
    if not member:
        yield root / place
        return
    held, _ = _archive(root / archive)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(member).name
        try:
            source = held.open(member) if isinstance(held, zipfile.ZipFile) else held.extractfile(member)
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(f"{archive} is damaged: {error}") from None
        yield path


@lru_cache(64)
def _archive(path: Path) -> tuple[zipfile.ZipFile | tarfile.TarFile, tuple[str, ...]]:
    """An open archive and the names of its files, kept open by the process."""
    if path.suffix.lower() == ".zip":
        held = zipfile.ZipFile(path)
        return held, tuple(info.filename for info in held.infolist() if not info.is_dir())
    held = tarfile.open(path, "r:")
    return held, tuple(member.name for member in held.getmembers() if member.isfile())


def _size(archive: Path, member: str) -> int:
    held, _ = _archive(archive)
    return held.getinfo(member).file_size if isinstance(held, zipfile.ZipFile) else held.getmember(member).size


def path_of(place: str) -> PurePosixPath:
    """A place as a path, archives taken for folders."""
    return PurePosixPath(*_parts(place))


def _member(place: str) -> tuple[str, str]:
    """(file, member): the archive and what is in it, or a file and nothing."""
    found = _MEMBER.fullmatch(place) if "!" in place else None
    return (found[1], found[2]) if found else (place, "")


def _hidden(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def _is_sound(place: str) -> bool:
    return splitext(place)[1].lower() in SOUND_SUFFIXES


def _stem(place: str) -> str:
    name = place.rpartition("/")[2]
    if "!" in name and _MEMBER.fullmatch(place):
        name = name.rpartition("!")[2]
    stem, suffix = splitext(name)
    return stem if suffix.lower() in SOUND_SUFFIXES else name


def _parts(place: str) -> list[str]:
    file, member = _member(place)
    return [part for part in (f"{file}/{member}" if member else file).split("/") if part not in ("", ".")] or [""]


def _ends(parts: list[str], wanted: list[str], sound: bool) -> bool:
    """Whether a path ends with these parts; of a sound, the name is compared without its suffix."""
    if len(parts) < len(wanted) or parts[-len(wanted) : -1] != wanted[:-1]:
        return False
    return (_is_sound(parts[-1]) and _stem(parts[-1]) == _stem(wanted[-1])) if sound else parts[-1] == wanted[-1]


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if len(parts) < len(patterns):
        return False
    for part, pattern in zip(parts[-len(patterns) :], patterns):
        if "{audio}" in pattern:
            if not (_is_sound(part) and fnmatchcase(_stem(part), pattern.removesuffix("{audio}").removesuffix("."))):
                return False
        elif not fnmatchcase(part, pattern):
            return False
    return True
