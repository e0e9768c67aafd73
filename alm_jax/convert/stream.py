"""Streaming one parameter from a checkpoint to its devices: only the rows that local shards need, a chunk at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import Rule

_CHUNK = 16 << 20  # bytes of a tensor read at once
_HELD = 512 << 20  # bytes of shards of one parameter filled in one pass over the file (one shard at least)
_TILE = 128  # edge of the squares in which a transposed copy stays within the CPU's cache

Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fill:
    """Where a parameter comes from: a rule, the file, and the file's own names of the rule's keys."""

    rule: Rule
    file: TensorFile
    names: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """A parameter that stays in its file until it, or one entry of its first axis, is asked for.

    `np.asarray(stored)` and `stored[layer]` read, in the file's own dtype, nothing but what they give. A tensor that is
    rearranged by moving axes comes as a view, so that to move them back costs nothing.
    """

    fill: Fill
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """The narrowest that holds all layers."""
        return reduce(jnp.promote_types, {self.fill.file.dtype(name) for name in self.fill.names})

    def dtype_of(self, layer: int) -> np.dtype:
        """Of one entry of the first axis, as it is stored."""
        return self.fill.file.dtype(self.fill.names[layer if self.fill.rule.stacked else 0])

    def __getitem__(self, layer: int) -> np.ndarray:
        if self.fill.rule.stacked:
            return self._read(self.fill.names[layer], [(0, size) for size in self.shape[1:]])
        return self._read(self.fill.names[0], [(layer, layer + 1), *((0, size) for size in self.shape[1:])])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.fill.rule.stacked:
            values = np.stack([self[layer] for layer in range(self.shape[0])], dtype=self.dtype)
        else:
            values = self._read(self.fill.names[0], [(0, size) for size in self.shape])
        return values if dtype is None else values.astype(dtype, copy=False)

    def _read(self, name: str, bounds: list[tuple[int, int]]) -> np.ndarray:
        rule, file = self.fill.rule, self.fill.file
        block, rest = rule.window(tuple(slice(*bound) for bound in bounds), file.shape(name))
        return np.asarray(rule.arrange.forward(file.read(name, block))[rest])


def read(fill: Fill, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """The parameter on its devices.

    Replicas are read once. Shards are filled together while they take less than 512 MB of the host's memory, since a
    shard of columns needs all rows of a tensor read; beyond that one after another.
    (`jax.make_array_from_callback` would read each shard of each replica apart, and keep all until the last.)
    """
    replicas: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        replicas.setdefault(bounds, []).append(device)
    placed = []
    for shards in _batches(list(replicas), np.dtype(dtype)):
        for bounds, values in _read_shards(fill, shards, np.dtype(dtype)).items():
            placed += [jax.device_put(values, device) for device in replicas[bounds]]
        jax.block_until_ready(placed)  # or the host would hold the next shards beside these
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, placed, dtype=dtype)


def _batches(shards: list[Bounds], dtype: np.dtype) -> Iterator[list[Bounds]]:
    size = prod(stop - start for start, stop in shards[0]) * dtype.itemsize if shards else 1
    count = max(1, _HELD // max(1, size))
    for first in range(0, len(shards), count):
        yield shards[first : first + count]


def _read_shards(fill: Fill, shards: list[Bounds], dtype: np.dtype) -> dict[Bounds, np.ndarray]:
    """Slices of the parameter, filled in one pass over its tensors."""
    arrays = {bounds: _aligned(tuple(stop - start for start, stop in bounds), dtype) for bounds in shards}
    if not fill.rule.stacked:
        _read_tensor(fill, fill.names[0], arrays)
        return arrays
    for layer, name in enumerate(fill.names):
        outs = {b[1:]: array[layer - b[0][0], ...] for b, array in arrays.items() if b[0][0] <= layer < b[0][1]}
        _read_tensor(fill, name, outs)
    return arrays


def _read_tensor(fill: Fill, name: str, outs: Mapping[Bounds, np.ndarray]) -> None:
    """Fill each array with its slice of what the tensor `name` makes."""
    rule, tensor = fill.rule, tuple(fill.file.shape(name))
    axis = rule.arrange.moves[0] if tensor else None
    rows = max(1, _CHUNK // max(1, prod(tensor[1:]) * fill.file.dtype(name).itemsize))
    for piece in _pieces([bounds[axis] for bounds in outs], rows) if axis is not None else [None]:
        takers = {
            bounds: out
            for bounds, out in outs.items()
            if piece is None or (bounds[axis][0] <= piece[0] and piece[1] <= bounds[axis][1])
        }
        hull = [(min(b[0] for b in along), max(b[1] for b in along)) for along in zip(*takers)]
        if piece is not None:
            hull[axis] = piece
        block, rest = rule.window(tuple(slice(*bounds) for bounds in hull), tensor)
        values = rule.arrange.forward(fill.file.read(name, block))[rest]
        for bounds, out in takers.items():
            common = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(bounds, hull)]
            into = tuple(slice(c[0] - b[0], c[1] - b[0]) for c, b in zip(common, bounds))
            of = tuple(slice(c[0] - h[0], c[1] - h[0]) for c, h in zip(common, hull))
            _copy(values[of], out[(..., *into)])


def _pieces(spans: list[tuple[int, int]], longest: int) -> Iterator[tuple[int, int]]:
    """Divide what `spans` cover at their ends, and further so that no piece is longer than `longest`."""
    cuts = sorted({cut for span in spans for cut in span})
    for start, stop in pairwise(cuts):
        if any(span[0] <= start and stop <= span[1] for span in spans):
            for first in range(start, stop, longest):
                yield first, min(first + longest, stop)


def _copy(values: np.ndarray, out: np.ndarray) -> None:
    """`out[...] = values`, by squares of the last two axes if these are transposed in memory.

    A square is first copied as it lies: read across rows whose distance is a power of two, its lines would evict one
    another from the cache (3 to 5 times slower, measured).
    """
    if values.dtype == out.dtype and values.dtype.itemsize == 2:
        values, out = values.view(np.uint16), out.view(np.uint16)  # NumPy copies bfloat16 a value at a time
    if values.ndim < 2 or values.strides[-1] <= values.strides[-2]:
        out[...] = values
        return
    for i in range(0, out.shape[-2], _TILE):
        for j in range(0, out.shape[-1], _TILE):
            square = (..., slice(i, i + _TILE), slice(j, j + _TILE))
            out[square] = values[square].copy("K")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of pages of its own, which JAX takes on CPU without a copy.

    `np.empty` asks for huge pages, which a virtual machine may have to be given by its host (measured: 8 seconds in the
    kernel instead of 2 for 2.2 GB).
    """
    size = prod(shape) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, size).view(dtype).reshape(shape)
