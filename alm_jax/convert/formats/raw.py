"""Tensors stored as plain bytes inside a file: where they lie, whether that can be true, and reading parts of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alm_jax.convert.formats import Index
from alm_jax.core.errors import CheckpointError

_BLOCK = 16 << 20  # bytes held at once while columns are picked out of rows
_SEGMENT = 4096  # bytes of a row that are worth a read of their own: a page


@dataclass(frozen=True)
class Extent:
    """A row-major tensor of `shape` and `dtype` that begins `offset` bytes into its file."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def misplaced(extents: Mapping[str, Extent], file_size: int) -> list[str]:
    """A line for each extent that reaches past the end of the file or into its neighbour."""
    problems, last, end = [], "", 0
    for key, extent in sorted(extents.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        stop = extent.offset + extent.nbytes
        if stop > file_size:
            problems.append(f"'{key}' ends at byte {stop} of a file of {file_size} (truncated?)")
        elif extent.nbytes and extent.offset < end:
            problems.append(f"'{key}' overlaps '{last}'")
        if stop > end:
            last, end = key, stop
    return problems


def read_extent(path: Path, extent: Extent, index: Index | None = None) -> np.ndarray:
    """The selected part of a tensor, from the bytes of its rows (a range of the leading axis) alone, and from those of
    its columns alone where these are a page at least and half a row at the most.

    Plain reads, not a memory map: mapped pages would count as resident memory beside the array.
    """
    index = tuple(index or ())
    if not extent.shape or not index:
        return _rows(path, extent, 0, extent.shape[0] if extent.shape else 1).reshape(extent.shape)
    start, stop, step = index[0].indices(extent.shape[0])
    inner = index[1:]
    counts = [len(range(*s.indices(n))) for s, n in zip(inner, extent.shape[1:])]
    if step != 1:
        return _rows(path, extent, 0, extent.shape[0])[index].copy()
    stop = max(start, stop)
    if counts == list(extent.shape[1 : 1 + len(counts)]) and all((s.step or 1) > 0 for s in inner):
        return _rows(path, extent, start, stop)
    first, _, stride = inner[0].indices(extent.shape[1])
    cell = math.prod(extent.shape[2:]) * extent.dtype.itemsize
    further = counts[1:] == list(extent.shape[2 : 1 + len(counts)]) and all((s.step or 1) > 0 for s in inner[1:])
    if stride == 1 and further and _SEGMENT <= counts[0] * cell <= extent.shape[1] * cell // 2:
        return _segments(path, extent, (start, stop), (first, first + counts[0]))
    out = np.empty((stop - start, *counts, *extent.shape[1 + len(counts) :]), extent.dtype)
    block = max(1, _BLOCK // max(1, math.prod(extent.shape[1:]) * extent.dtype.itemsize))
    for row in range(start, stop, block):
        until = min(row + block, stop)
        out[row - start : until - start] = _rows(path, extent, row, until)[(slice(None), *inner)]
    return out


def _rows(path: Path, extent: Extent, start: int, stop: int) -> np.ndarray:
    row = extent.shape[1:]
    size = math.prod(row) * extent.dtype.itemsize
    # as bytes: np.fromfile knows no ml_dtypes
    flat = np.fromfile(path, np.uint8, count=(stop - start) * size, offset=extent.offset + start * size)
    return flat.view(extent.dtype).reshape(stop - start, *row)


def _segments(path: Path, extent: Extent, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """A range of the second axis in a range of the first, by the bytes of that range in each row alone."""
    cell = math.prod(extent.shape[2:]) * extent.dtype.itemsize
    flat = np.empty((rows[1] - rows[0], (columns[1] - columns[0]) * cell), np.uint8)
    with path.open("rb", buffering=0) as file:
        for row, segment in zip(range(*rows), flat):
            file.seek(extent.offset + (row * extent.shape[1] + columns[0]) * cell)
            if file.readinto(segment) != len(segment):
                raise CheckpointError(f"{path}: ends inside a tensor; it was changed while it was read")
    return flat.view(extent.dtype).reshape(len(flat), columns[1] - columns[0], *extent.shape[2:])
