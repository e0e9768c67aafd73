"""Folders of the cache that stand for one elsewhere, at any URL that fsspec opens: small files are fetched whole, of
shards only the records that are asked for.

ArrayRecord's reader takes paths alone (and `gs://` in its Linux builds, which asks for all that follows a record). So a
shard is a local file of its full length, empty but for its index; each record is put where it stands when it is first
read, and the ordinary reader reads it and checks its hash. Records are found by the index at the file's end
(array_record's `layout.proto`, Riegeli's `riegeli_records_file_format.md`), which our shards hold uncompressed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alm_jax.core.errors import AudioError

FETCHED_FROM = "fetched_from"
"""File in a folder that stands for another one: the URL of that."""

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40  # bytes; each block of a file begins with a header
_SIMPLE, _MAGIC = ord("r"), 0x71930E704FDAE05E
_TAIL = 2 * _BLOCK  # postscript and index of up to some 5000 records
_UNKNOWN = (ValueError, KeyError, IndexError, struct.error)  # what reading another format ends in
_HEAD = 8  # bytes of a hash that each record begins with: written last, so that they tell whether it is there


def fetch(path: Path) -> None:
    """Fetch a file that is not there, if its folder stands for one elsewhere; it appears whole or not at all, and once
    if several processes want it.

    Raises:
        AudioError: it cannot be had.
    """

    def get(url: str, partial: Path) -> None:
        import fsspec

        fs, remote = fsspec.url_to_fs(url)
        fs.get_file(remote, str(partial))

    _made(path, get)


@dataclass(frozen=True)
class Ranges:
    """A shard whose records are fetched one by one into a local file.

    Attributes:
        path, url: of the local file and of the shard. starts: where each record begins, and the last one ends.
    """

    path: Path
    url: str
    starts: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Ranges | None:
        """Those of a shard in a folder that stands for one elsewhere, its index fetched if it is not there; None of any
        other shard.

        Raises:
            AudioError: it cannot be had, or `alm data prepare` did not write it.
        """
        url = _origin(path)
        if url is None:
            return None
        _made(path, _fetch_index)
        with path.open("rb") as file:

            def read(start: int, end: int) -> bytes:
                file.seek(start)
                return file.read(end - start)

            try:
                return cls(path, url, _starts(read, path.stat().st_size))
            except _UNKNOWN:
                raise AudioError(f"{path}: not a shard of `alm data prepare`, or damaged: delete it") from None

    def fetch(self, number: int) -> None:
        """Fetch a record unless it is there.

        Raises:
            AudioError: it cannot be had.
        """
        start, end = self.starts[number : number + 2]
        with self.path.open("r+b") as file:
            file.seek(start)
            if any(file.read(_HEAD)):
                return
            try:
                data = _read(self.url, start, end)
                file.seek(start + _HEAD)
                file.write(data[_HEAD:])
                file.flush()
                file.seek(start)
                file.write(data[:_HEAD])
            except Exception as error:  # each file system has its own
                raise _unfetched(self.url, error) from None


def _fetch_index(url: str, partial: Path) -> None:
    """A file as long as the one at the URL, with its index."""
    import fsspec

    fs, remote = fsspec.url_to_fs(url)
    size = fs.size(remote)
    tail_start = max(0, size - _TAIL)
    tail = _read(url, tail_start, size)

    def read(start: int, end: int) -> bytes:
        return tail[start - tail_start : end - tail_start] if start >= tail_start else _read(url, start, end)

    footer = _starts(read, size)[-1]
    with partial.open("wb") as file:
        file.truncate(size)
        file.seek(footer)
        file.write(read(footer, size))


def _starts(read: Callable[[int, int], bytes], size: int) -> tuple[int, ...]:
    """Where each record of a shard of `size` bytes begins, and its index behind them."""
    postscript = _fields(_records(read(size - _BLOCK, size), 0)[0])
    if postscript.get(2) != _MAGIC:
        raise ValueError("not an ArrayRecord file")
    index = postscript[1]
    _, *places = _records(read(index, size), index)  # the first tells of the file
    return (*(_fields(place)[1] for place in places), index)


def _records(data: bytes, start: int) -> list[bytes]:
    """The records of an uncompressed chunk; `data` begins with it, and stands at `start` in the file."""
    blocks = range(start - start % _BLOCK, start + len(data), _BLOCK)
    plain = b"".join(data[max(0, at + _BLOCK_HEADER - start) : at + _BLOCK - start] for at in blocks)
    size, kind = struct.unpack_from("<8xQ8xB", plain)
    chunk = plain[_CHUNK_HEADER : _CHUNK_HEADER + size]
    if kind != _SIMPLE or len(chunk) < size or chunk[0]:
        raise ValueError("not an uncompressed chunk")
    length, at = _varint(chunk, 1)
    records, place, sizes_end = [], at + length, at + length
    while at < sizes_end:
        size, at = _varint(chunk, at)
        records.append(chunk[place : place + size])
        place += size
    return records


def _fields(message: bytes) -> dict[int, int]:
    """The fields of a protocol buffer that holds integers alone, by number."""
    fields, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        fields[tag >> 3], at = _varint(message, at)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends) of a base-128 integer."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _read(url: str, start: int, end: int) -> bytes:
    import fsspec

    fs, remote = fsspec.url_to_fs(url)
    data = fs.cat_file(remote, start=start, end=end)
    if len(data) != end - start:
        raise OSError(f"{len(data)} of the {end - start} bytes from {start} on came")
    return data


def _origin(path: Path) -> str | None:
    """Where a file is to be had, if its folder stands for one elsewhere."""
    folder = next((folder for folder in path.parents[:2] if (folder / FETCHED_FROM).is_file()), None)
    if folder is None:
        return None
    return f"{(folder / FETCHED_FROM).read_text().rstrip('/')}/{path.relative_to(folder).as_posix()}"


def _made(path: Path, make: Callable[[str, Path], None]) -> None:
    """Let `make(url, partial)` make a file that is not there; it appears whole, and once."""
    if path.is_file() or (url := _origin(path)) is None:
        return
    from filelock import FileLock

    partial = path.with_name(f".{path.name}.partial")
    try:
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                make(url, partial)
                partial.replace(path)
    except Exception as error:  # each file system has its own
        raise _unfetched(url, error) from None


def _unfetched(url: str, error: Exception) -> AudioError:
    return AudioError(f"{url}: cannot be fetched ({type(error).__name__}: {error})")
