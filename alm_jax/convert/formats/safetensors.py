"""safetensors: a JSON header of names, types and offsets, then the bytes.

The header is read here and not by the `safetensors` package because its reader maps the file (the pages count as
resident memory beside the arrays), stops at the first fault, and knows bfloat16 in NumPy only of late.
"""

import json
import math
from collections.abc import Iterable
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
