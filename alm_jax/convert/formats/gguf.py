"""GGUF, the file format of llama.cpp: typed key-value metadata, then tensors, plain or quantised in blocks.

The header is read by `core.gguf`; dequantising is the `gguf` package's.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alm_jax.convert.formats import Index
from alm_jax.convert.formats.raw import Extent, misplaced, read_extent
from alm_jax.core.errors import CheckpointError
from alm_jax.core.gguf import TensorInfo, read_header

_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")


class Gguf:
    """One `.gguf` file. Shapes are in NumPy order (ggml counts axes from the innermost).

    `metadata` maps the file's keys (`llama.block_count`, `tokenizer.ggml.tokens`, ...) to numbers, strings and lists.
    Names and layouts are llama.cpp's (`convert.llama.gguf`).
    """

    def __init__(self, path: Path):
        self.path = path
        header = read_header(path)
        self.metadata = header.metadata
        problems: list[str] = []
        self._tensors: dict[str, Extent] = {}  # quantised tensors: their bytes, [..., bytes a row]
        self._quantised: dict[str, tuple[Any, tuple[int, ...]]] = {}  # their type, their shape
        for info in header.tensors:
            if info.name in self._tensors:
                problems.append(f"'{info.name}' is listed twice")
            try:
                self._add(info)
            except ValueError as e:
                problems.append(f"'{info.name}' {e}")
        problems += misplaced(self._tensors, header.size)
        if problems:
            raise CheckpointError(f"{path}: {len(problems)} problem(s): " + "; ".join(problems))

    def _add(self, info: TensorInfo) -> None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, shape, kind = info.name, info.shape, info.kind
        known = kind in {t.value for t in GGMLQuantizationType}
        label = GGMLQuantizationType(kind).name if known else "unknown"
        if label in _PLAIN:
            self._tensors[name] = Extent(info.offset, np.dtype(_PLAIN[label]), shape)
            return
        if label not in _QUANTISED:
            raise ValueError(f"has type {kind} ({label}), expected {', '.join((*_PLAIN, *_QUANTISED))}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or shape[-1] % block:
            raise ValueError(f"of shape {shape} does not divide into {label} blocks of {block}")
        row = shape[-1] // block * block_bytes
        self._tensors[name] = Extent(info.offset, np.dtype(np.uint8), (*shape[:-1], row))
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
