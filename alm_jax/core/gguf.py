"""The header of a GGUF file, the format of llama.cpp: typed key-value metadata, and where the tensors lie.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's reader is not used because it
takes 20 times as long over a vocabulary and never returns from an absurd array length.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alm_jax.core.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # ggml's own bound


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, its shape in NumPy order (ggml counts axes from the innermost), its type's number in ggml, and
    where its bytes begin in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What stands before the tensors' bytes.

    Attributes:
        metadata: the file's keys (`llama.block_count`, `tokenizer.ggml.tokens`, ...) to numbers, strings and lists.
        tensors: in the order of the file. size: of the file, in bytes.
    """

    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    size: int


def read_header(path: Path) -> Header:
    """Read the header of a `.gguf` file; a vocabulary of 50 thousand takes 0.1 s.

    Raises:
        CheckpointError: it is damaged, of another version, or a part of a split file.
    """
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, path)
        metadata, infos = _parse(cursor)
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise CheckpointError(f"{path}: general.alignment is {align!r}, expected a positive number")
        start, size = -(-cursor.at // align) * align, len(data)
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise CheckpointError(f"{path}: one part of a split GGUF; join them with llama-gguf-split --merge")
    return Header(metadata, tuple(TensorInfo(*info, start + offset) for *info, offset in infos), size)


class _Cursor:
    """Reads a GGUF header; every length is checked against what is left of the file."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes and say where they began."""
        begin = self.at
        if size > len(self.data) - begin:
            raise CheckpointError(
                f"{self.path}: {what} wants {size} bytes at byte {begin} of a file of {len(self.data)} "
                "(truncated or corrupt)"
            )
        self.at += size
        return begin

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        begin = self.take(self.scalar("Q", what), what)
        try:
            return self.data[begin : self.at].decode("utf-8")
        except UnicodeDecodeError as e:
            raise CheckpointError(f"{self.path}: {what} is not UTF-8: {e}") from e

    def value(self, what: str) -> Any:
        kind = self.scalar("I", what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            return self.scalar(self._code(kind, what), what)
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind == _STRING:
            self.check_count(count, 8, what)
            return [self.string(what) for _ in range(count)]
        code = "<" + self._code(kind, what)
        begin = self.take(count * struct.calcsize(code), what)
        return [item for (item,) in struct.iter_unpack(code, self.data[begin : self.at])]

    def _code(self, kind: int, what: str) -> str:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: {what} has the unknown value type {kind}")
        return _SCALARS[kind]

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > len(self.data) - self.at:
            raise CheckpointError(f"{self.path}: {count} {what} cannot be in a file of {len(self.data)} bytes")


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
    """Metadata, and name, NumPy shape, type and offset of each tensor."""
    cursor.take(4, "the magic")
    version = cursor.scalar("I", "the version")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.path}: GGUF version {version}, expected 2 or 3 (little-endian)")
    tensors, entries = cursor.scalar("Q", "the tensor count"), cursor.scalar("Q", "the metadata count")
    cursor.check_count(tensors, 8 + 4 + 4 + 8, "tensors")
    cursor.check_count(entries, 8 + 4 + 1, "metadata entries")
    metadata = {}
    for _ in range(entries):
        key = cursor.string("a metadata key")
        metadata[key] = cursor.value(f"'{key}'")
    infos = []
    for _ in range(tensors):
        name = cursor.string("a tensor name")
        dims = cursor.scalar("I", f"'{name}'")
        if dims > _MAX_DIMS:
            raise CheckpointError(f"{cursor.path}: '{name}' has {dims} axes, expected at most {_MAX_DIMS}")
        shape = tuple(cursor.scalar("Q", f"'{name}'") for _ in range(dims))[::-1]
        if math.prod(shape) == 0:
            raise CheckpointError(f"{cursor.path}: '{name}' is empty, shape {shape}")
        infos.append((name, shape, cursor.scalar("I", f"'{name}'"), cursor.scalar("Q", f"'{name}'")))
    return metadata, infos
