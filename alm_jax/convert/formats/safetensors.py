"""safetensors: a JSON header of names, types and offsets, then the bytes.

Files are read and written here and not by the `safetensors` package because its reader maps the file (the pages count
as resident memory beside the arrays), stops at the first fault, and knows bfloat16 in NumPy only of late; its writer
wants all tensors of a file in memory at once.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alm_jax.convert.formats import Index
from alm_jax.convert.formats.raw import Extent, misplaced, read_extent
from alm_jax.core.errors import CheckpointError

DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own bound


class Safetensors:
    """One `.safetensors` file; `metadata` is its `__metadata__` (strings)."""

    def __init__(self, path: Path):
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(f"{path}: header of {length} bytes in a file of {size} (truncated or corrupt)")
            header = f.read(length)
        problems: list[str] = []
        entries = _parse(path, header, problems)
        self.metadata: dict[str, Any] = entries.pop("__metadata__", {})
        if not isinstance(self.metadata, dict):
            problems.append("'__metadata__' is no JSON object")
        self._tensors: dict[str, Extent] = {}
        for key, entry in entries.items():
            try:
                self._tensors[key] = _extent(entry, data=8 + length)
            except (KeyError, TypeError, ValueError) as e:
                problems.append(f"'{key}' has a bad entry: {e}")
        problems += misplaced(self._tensors, size)
        if problems:
            raise CheckpointError(f"{path}: {len(problems)} problem(s): " + "; ".join(problems))

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._tensors[key].shape

    def dtype(self, key: str) -> np.dtype:
        return self._tensors[key].dtype

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        return read_extent(self.path, self._tensors[key], index)


def _parse(path: Path, header: bytes, problems: list[str]) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in items:
            if key in seen:
                problems.append(f"'{key}' is in the header twice")
            seen[key] = value
        return seen

    try:
        entries = json.loads(header, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: the safetensors header is not JSON: {e}") from e
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: the safetensors header is no JSON object")
    return entries


def _extent(entry: dict[str, Any], data: int) -> Extent:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"shape {shape} and offsets {begin}, {end} are to be whole numbers, 0 or more")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for {entry['dtype']} of shape {shape}")
    return Extent(data + begin, dtype, shape)


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written, whose values are made when they are asked for.

    Attributes:
        key, shape, dtype: as they will stand in the file.
        pieces: yields the values in row-major order, in pieces along the first axis.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """All values, contiguous."""
        pieces = list(self.pieces())
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return np.ascontiguousarray(whole).reshape(self.shape)


def write_safetensors(path: Path, tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file; the host holds one piece of one tensor at a time.

    Tensors stand in their order, those of wider numbers first, so that each is aligned to its own width.

    Raises:
        OSError: the disk refuses. CheckpointError: a dtype that the format does not have.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    if odd := [f"{tensor.key} ({tensor.dtype})" for tensor in tensors if tensor.dtype not in _NAMES]:
        raise CheckpointError(f"safetensors files cannot hold {', '.join(odd)}")
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        offsets = [end, end := end + tensor.nbytes]
        header[tensor.key] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces():
                # as bytes: ml_dtypes have no buffer protocol
                written += file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
            if written != tensor.nbytes:
                raise CheckpointError(f"{tensor.key} has {written} bytes, expected {tensor.nbytes}")
