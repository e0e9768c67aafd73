"""LTU's JSON rows: read, checked, and kept as places in the file, so that millions of them cost little memory."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alm_jax.core.errors import DataError

_REQUIRED = ("instruction", "audio_id", "output")
_NULLABLE = ("input", "audio_id", "caption", "dataset", "task")
AUDIO_MARK = "<audio>"
Hears = Literal["audio", "text"]
_FIELDS = ("instruction", "input", "audio_id", "caption", "dataset", "task", "output", "meta")
_LISTS = ("audio_id", "caption")
_SEPARATOR = re.compile(r"[\s,]*")
_WINDOW = 1 << 22


@dataclass(frozen=True)
class AudioRow:
    """One question about one clip (LTU README, "Prepare your own data"), or about several in any order with text.

    A clip is a file, or a text that says what is heard, for training on text alone; where a row has both, the stage
    says which is heard (`train.config.Stage.hears`).

    Attributes:
        instruction: the question. `<audio>` marks in it and in `input` say where the clips are heard, one mark a clip,
            in their order; without any mark the clips lead.
        input: further text that the question is about (LTU-AS: the transcript); empty if none.
        audio_id: path of the clip, absolute or relative to the rows' file, or paths of several; empty for a row
            without a clip.
        caption: what is heard in the clip, in words, or in each of several (MATS's `caption`); empty if nobody says.
        dataset, task: free labels.
        output: the answer.
        meta: whatever else the row's maker wants to keep (choices, events, ...); not read in training.

    Raises:
        DataError: there are marks, and not as many as clips; or captions, and not as many as files.
    """

    instruction: str
    input: str = ""
    audio_id: str | tuple[str, ...] = ""
    dataset: str = ""
    task: str = ""
    output: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    caption: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        marks, clips = self.marks, self.num_clips
        if self.clips and self.captions and len(self.clips) != len(self.captions):
            raise DataError(
                f"the row holds {len(self.clips)} clips and {len(self.captions)} captions; give one caption a clip, or "
                "none"
            )
        if marks and marks != clips:
            raise DataError(
                f"the question holds {marks} {AUDIO_MARK} mark{'s' * (marks > 1)} and the row {clips or 'no'} "
                f"clip{'s' * (clips != 1)}; give audio_id one path a mark, or write no mark: then the clips come first"
            )

    @property
    def clips(self) -> tuple[str, ...]:
        """The row's audio ids, by clip number."""
        return _tuple(self.audio_id)

    @property
    def captions(self) -> tuple[str, ...]:
        """Its captions, by clip number."""
        return _tuple(self.caption)

    @property
    def num_clips(self) -> int:
        """How many clips it is about, be they files or texts."""
        return len(self.clips or self.captions)

    @property
    def marks(self) -> int:
        """How many `<audio>` marks its text holds."""
        return self.instruction.count(AUDIO_MARK) + self.input.count(AUDIO_MARK)


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: where it stands (`rows.json[7]`, `rows.jsonl:8`), the field and its problem."""

    where: str
    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field + ' ' if self.field else ''}{self.problem}"


@dataclass(frozen=True)
class RowSet:
    """The good rows of one file.

    Attributes:
        rows: a sequence of `AudioRow`; those of a file are parsed when they are asked for.
        root: the folder that relative audio ids start from.
        bad: the rows that were left out.
    """

    rows: Sequence[AudioRow]
    root: Path
    bad: tuple[BadRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> AudioRow:
        return self.rows[index]

    def name(self, index: int) -> str:
        """Where a row stands, for messages: `rows.json[7]` (counted from 0) or `rows.jsonl:8` (line, from 1)."""
        return self.rows.name(index) if isinstance(self.rows, _FileRows) else f"row {index}"

    def clip_path(self, audio_id: str) -> Path:
        """Where the file of one clip is.

        Raises:
            DataError: these are several clips.
        """
        if not isinstance(audio_id, str):
            raise DataError(f"{', '.join(audio_id)}: {len(audio_id)} clips in a row, where rows of one are expected")
        return self.root / audio_id

    def heard(self, row: AudioRow, hears: Hears = "audio") -> tuple[Path, ...] | tuple[str, ...]:
        """What stands for a row's clips, by clip number: their files, or their captions.

        Raises:
            DataError: the row has clips, but not as these.
        """
        found = row.captions if hears == "text" else tuple(map(self.clip_path, row.clips))
        if len(found) != row.num_clips:
            has, lacks = ("an audio_id", "caption") if hears == "text" else ("a caption", "audio_id")
            raise DataError(
                f"the row has {has} and no {lacks}, and this stage hears {hears}: give it, or set stage.hears"
            )
        return found

    def choose(self, numbers: Sequence[int]) -> RowSet:
        """Some of the rows, by their numbers here."""
        if isinstance(self.rows, _FileRows):
            return replace(self, rows=self.rows.choose(np.asarray(numbers)))
        return replace(self, rows=[self.rows[number] for number in numbers])

    @property
    def stamp(self) -> tuple[str, int, int, str] | None:
        """(path, size, modification time, which rows: empty for all) of the file behind the rows; None for rows in
        memory."""
        return (*self.rows.stamp, self.rows.chosen) if isinstance(self.rows, _FileRows) else None


def holds_rows(path: str | Path) -> bool:
    """Whether a JSON file's first object is a row; False for what is no such file."""
    path = Path(path).expanduser()
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.read(_WINDOW)
    try:
        first, _ = json.JSONDecoder().raw_decode(text.lstrip("[ \r\n\t"))
    except ValueError:
        return False
    return isinstance(first, dict) and "instruction" in first


def read_rows(path: str | Path, *, max_bad_share: float = 0.0, need_output: bool = True) -> RowSet:
    """Read and check a file of rows: a JSON array of objects, or one object a line.

    One pass checks every row and notes where it stands (16 bytes a row); the text stays in the file, memory-mapped and
    shared with data workers, and a row is parsed again when it is used. The file must not change meanwhile.

    Args:
        path: fields are those of `AudioRow`. `instruction`, `audio_id` (or `caption`) and `output` must be there, the
            clips may be a list, empty or null (a row without a clip), `input` null; no other field may be.
        max_bad_share: share of the rows that may be bad and are left out.
        need_output: False where rows hold questions alone.

    Raises:
        DataError: no such file, not JSON, no rows, or too many bad ones (the first few are named).
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(f.fileno()).st_size else b""
            stamp = _stamp(path)
    except OSError as e:
        raise DataError(f"{path}: cannot read rows: {e.strerror}") from None
    first = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first not in (b"[", b"{"):
        problem = "is not JSON" if first else "is empty"
        raise DataError(f"{path}: {problem}; expected an array of rows, or one row a line")

    lines = first == b"{"
    places, bad, count = array("q"), [], 0
    for number, start, size in _lines(data) if lines else _elements(path, data):
        count += 1
        try:
            _parse(data[start : start + size], need_output)
            places.extend((number, start, size))
        except _Bad as e:
            bad.append(BadRow(_where(path, number, lines), *e.args))
    if len(bad) > max_bad_share * count:
        some = "; ".join(map(str, bad[:3])) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise DataError(f"{len(bad)} of {count} rows are bad (at most {max_bad_share:.2%} may be): {some}")
    if not places:
        raise DataError(f"{path}: no rows")
    return RowSet(
        _FileRows(path, stamp, lines, np.frombuffer(places, np.int64).reshape(-1, 3)), path.resolve().parent, tuple(bad)
    )


class _FileRows(Sequence):
    """Rows of a JSON file by their places in it; pickles to those alone."""

    def __init__(self, path: Path, stamp: tuple[str, int, int], lines: bool, places: np.ndarray, chosen: str = ""):
        self._path, self.stamp, self._lines = path, stamp, lines
        self._numbers, self._starts, self._sizes = (
            places[:, 0].astype(np.int32),
            np.ascontiguousarray(places[:, 1]),
            places[:, 2].astype(np.int32),
        )
        self.chosen = chosen
        self._data: mmap.mmap | None = None

    def choose(self, numbers: np.ndarray) -> _FileRows:
        places = np.stack([self._numbers[numbers], self._starts[numbers], self._sizes[numbers]], axis=1)
        chosen = hashlib.sha256(places[:, 0].tobytes()).hexdigest()[:16]
        return _FileRows(self._path, self.stamp, self._lines, places, chosen)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> AudioRow:
        start, size = int(self._starts[index]), int(self._sizes[index])
        if self._data is None:
            self._data = self._open()
        try:
            return _parse(self._data[start : start + size], need_output=False)
        except _Bad as e:
            raise DataError(f"{self.name(index)}: {' '.join(e.args)}; the file was changed while in use") from None

    def name(self, index: int) -> str:
        return _where(self._path, int(self._numbers[index]), self._lines)

    def _open(self) -> mmap.mmap:
        try:
            if _stamp(self._path) != self.stamp:
                raise DataError(f"{self._path}: was changed while in use; start again")
            with self._path.open("rb") as f:
                return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise DataError(f"{self._path}: cannot read rows: {e.strerror}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None}


class _Bad(Exception):
    """(field, problem) of one row."""


def _parse(text: bytes, need_output: bool) -> AudioRow:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _Bad("", f"is not valid JSON: {e}") from None
    if not isinstance(record, dict):
        raise _Bad("", f"is a JSON {type(record).__name__}, expected an object with {', '.join(_REQUIRED)}")
    for name in _REQUIRED:
        if name == "audio_id" and "caption" in record:
            record.setdefault(name, "")
        if name not in record and (need_output or name != "output"):
            raise _Bad(name, "is missing")
    for name, value in record.items():
        if name not in _FIELDS:
            raise _Bad(name, f"is not a field of a row; fields are {', '.join(_FIELDS)}")
        if name in _LISTS and isinstance(value, list):
            record[name] = _clips(name, value)
            continue
        expected = dict if name == "meta" else str
        if not isinstance(value, expected) and not (value is None and name in _NULLABLE):
            raise _Bad(name, f"is a {type(value).__name__}, expected {'an object' if name == 'meta' else 'text'}")
    if not record["instruction"].strip():
        raise _Bad("instruction", "is empty")
    try:
        return AudioRow(**{name: "" if value is None else value for name, value in record.items()})
    except DataError as e:
        raise _Bad("", str(e)) from None


def _clips(name: str, given: list[Any]) -> str | tuple[str, ...]:
    """A list of audio ids or captions as a row holds it: one clip is no list."""
    for each in given:
        if not (isinstance(each, str) and each):
            raise _Bad(name, f"holds {each!r}, expected {'the path' if name == 'audio_id' else 'the text'} of a clip")
    return tuple(given) if len(given) > 1 else "".join(given)


def _tuple(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return given if isinstance(given, tuple) else (given,) if given else ()


def _lines(data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(line from 1, start, size) of every line that is not blank."""
    start = 3 if data[:3] == b"\xef\xbb\xbf" else 0
    number = 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if data[start:end].strip():
            yield number, start, end - start
        start = end + 1


def _elements(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(index from 0, start, size) of every element of a JSON array, a window of the file at a time.

    Windows are decoded as Latin-1, where a character is a byte: JSON's own characters are ASCII, so places are right
    whatever the strings hold (they are parsed as UTF-8 afterwards).
    """
    decode = json.JSONDecoder().raw_decode
    base, window, number = data.find(b"[") + 1, _WINDOW, 0
    while True:
        text = data[base : base + window].decode("latin-1")
        last = base + window >= len(data)
        at = 0
        while True:
            at = _SEPARATOR.match(text, at).end()
            if at < len(text) and text[at] == "]":
                return
            try:
                _, end = decode(text, at)
                whole = last or end < len(text)  # at a window's end a number may go on
            except (ValueError, RecursionError):
                whole = False
            if not whole:
                break
            yield number, base + at, end - at
            number, at = number + 1, end
        if last:
            raise DataError(f"{path}[{number}]: the JSON array is broken from byte {base + at} on")
        base, window = base + at, _WINDOW if at else 2 * window


def _where(path: Path, number: int, lines: bool) -> str:
    return f"{path}:{number}" if lines else f"{path}[{number}]"


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
