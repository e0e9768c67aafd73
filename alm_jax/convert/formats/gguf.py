"""GGUF, the file format of llama.cpp: typed key-value metadata, then tensors, plain or quantised in blocks.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Dequantising is the `gguf` package's; its reader is
not used because it takes 20 times as long over a vocabulary and never returns from an absurd array length.
"""

import math
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alm_jax.convert.formats import Index
from alm_jax.convert.formats.raw import Extent, misplaced, read_extent
from alm_jax.core.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_MAX_DIMS = 4  # ggml's own bound


class Gguf:
    """One `.gguf` file. Shapes are in NumPy order (ggml counts axes from the innermost).

    `metadata` maps the file's keys (`llama.block_count`, `tokenizer.ggml.tokens`, ...) to numbers, strings and lists.
    Names and layouts are llama.cpp's: query and key projections of LLaMA models are permuted, see `unpermute_rope`.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path)
            self.metadata, infos = _parse_header(cursor)
            align = self.metadata.get("general.alignment", 32)
            if not isinstance(align, int) or align < 1:
                raise CheckpointError(f"{path}: general.alignment is {align!r}, expected a positive number")
            start = -(-cursor.at // align) * align
            size = len(data)
        if self.metadata.get("split.count", 1) > 1:
            raise CheckpointError(f"{path}: one part of a split GGUF; join them with llama-gguf-split --merge")
        problems: list[str] = []
        self._tensors: dict[str, Extent] = {}  # quantised tensors: their bytes, [..., bytes a row]
        self._quantised: dict[str, tuple[Any, tuple[int, ...]]] = {}  # their type, their shape
        for name, shape, kind, offset in infos:
            if name in self._tensors:
                problems.append(f"'{name}' is listed twice")
            try:
                self._add(name, shape, kind, start + offset)
            except ValueError as e:
                problems.append(f"'{name}' {e}")
        problems += misplaced(self._tensors, size)
        if problems:
            raise CheckpointError(f"{path}: {len(problems)} problem(s): " + "; ".join(problems))

    def _add(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        known = kind in {t.value for t in GGMLQuantizationType}
        label = GGMLQuantizationType(kind).name if known else "unknown"
        if label in _PLAIN:
            self._tensors[name] = Extent(offset, np.dtype(_PLAIN[label]), shape)
            return
        if label not in _QUANTISED:
            raise ValueError(f"has type {kind} ({label}), expected {', '.join((*_PLAIN, *_QUANTISED))}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or shape[-1] % block:
            raise ValueError(f"of shape {shape} does not divide into {label} blocks of {block}")
        row = shape[-1] // block * block_bytes
        self._tensors[name] = Extent(offset, np.dtype(np.uint8), (*shape[:-1], row))
        self._quantised[name] = (GGMLQuantizationType(kind), shape)

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._quantised[key][1] if key in self._quantised else self._tensors[key].shape

    def dtype(self, key: str) -> np.dtype:
        return np.dtype(np.float32) if key in self._quantised else self._tensors[key].dtype

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        if key not in self._quantised:
            return read_extent(self.path, self._tensors[key], index)
        from gguf.quants import dequantize

        kind, shape = self._quantised[key]
        index = tuple(index or ())
        rows, columns = index[: len(shape) - 1], index[len(shape) - 1 :]  # blocks lie along the last axis
        stored = read_extent(self.path, self._tensors[key], rows)
        # `dequantize` fails on no rows
        values = dequantize(stored, kind) if stored.size else np.empty((*stored.shape[:-1], shape[-1]), np.float32)
        return values[(..., *columns)].copy() if columns else values


def unpermute_rope(w: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's permutation of a LLaMA query or key projection, `[heads * head_dim, ...]`.

    llama.cpp rotates neighbouring pairs (2i, 2i + 1) of a head where the original weights rotate (i, i + head_dim / 2),
    and stores rows in the order that makes both equal (`permute` in its convert_hf_to_gguf.py). `heads` is the number
    of query heads for q and of key-value heads for k.
    """
    if w.shape[0] % (2 * heads):
        raise ValueError(f"{w.shape[0]} rows do not divide into {heads} heads of even size")
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


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


def _parse_header(cursor: _Cursor) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
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
