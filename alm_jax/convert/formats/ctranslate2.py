"""CTranslate2 `model.bin`: a spec's name and revision, then named variables, then aliases.

Layout as `Model::load` of CTranslate2's src/models/model.cc reads it (little-endian; a string is its length with the
closing NUL in 16 bits, then its bytes):

    u32 binary version, string spec, u32 revision, u32 count,
    count x (string name, u8 rank, u32 dims[rank], u8 dtype, u32 bytes, data),
    u32 count, count x (string alias, string name)

Self-attention packs query, key and value as the three row blocks of `linear_0`, cross-attention packs key and value
as the two of `linear_1`, with zeros where Whisper's key projection has no bias; the last projection follows.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from alm_jax.convert.formats import Index
from alm_jax.convert.formats.raw import Extent, read_extent
from alm_jax.core.errors import CheckpointError

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)
_VERSIONS = (4, 5, 6)  # 4 brought data types, 6 is current
_SCALE = "_scale"


class CTranslate2:
    """A CTranslate2 model. Weights quantised to int8 or int16 read as float32 (their `weight_scale` is not listed).

    Variables that are equal are stored once, tied or not: their aliases are listed as keys of their own.
    `metadata`: `spec`, `revision`, `binary_version`, `aliases` (alias to variable), and `attributes`, the variables of
    rank 0 (`encoder/num_heads`, ...), which are settings and not weights.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as f:
            variables, self.metadata = _parse_header(_Reader(f, path))
        scales = {k for k in variables if k.endswith(_SCALE) and k.removesuffix(_SCALE) in variables}
        self._scales = {k.removesuffix(_SCALE): variables[k] for k in scales}
        self._tensors = {k: extent for k, extent in variables.items() if extent.shape and k not in scales}
        attributes = variables.keys() - self._tensors.keys() - scales
        self.metadata["attributes"] = {k: read_extent(path, variables[k]).item() for k in sorted(attributes)}
        problems = []
        for key, scale in self._scales.items():
            extent = variables[key]
            if extent.dtype not in (np.int8, np.int16):
                problems.append(f"'{key}' is {extent.dtype} with a scale, expected int8 or int16")
            elif scale.shape not in ((), (1,), extent.shape[:1]):
                problems.append(f"'{key}' of shape {extent.shape} has a scale of shape {scale.shape}")
        for alias, key in self.metadata["aliases"].items():
            if key in self._tensors:
                self._tensors[alias] = self._tensors[key]
            if key in self._scales:
                self._scales[alias] = self._scales[key]
            if key not in variables or alias in variables:
                problems.append(f"'{alias}' stands for '{key}': one variable and one other name are expected")
        if problems:
            raise CheckpointError(f"{path}: {len(problems)} problem(s): " + "; ".join(problems))

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._tensors[key].shape

    def dtype(self, key: str) -> np.dtype:
        return np.dtype(np.float32) if key in self._scales else self._tensors[key].dtype

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        values = read_extent(self.path, self._tensors[key], index)
        if key not in self._scales:
            return values
        scale = read_extent(self.path, self._scales[key]).astype(np.float32)
        if scale.size > 1:  # one a row
            scale = scale[index[0] if index else slice(None)]
        return values.astype(np.float32) / scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))


class _Reader:
    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.size = file, path, path.stat().st_size

    def skip(self, size: int, what: str) -> int:
        """Step over `size` bytes of data and say where they began."""
        begin = self.file.tell()
        if size > self.size - begin:
            raise CheckpointError(
                f"{self.path}: {what} wants {size} bytes at byte {begin} of a file of {self.size} "
                "(truncated, or a part is missing)"
            )
        self.file.seek(size, 1)
        return begin

    def number(self, size: int, what: str) -> int:
        self.file.seek(self.skip(size, what))
        return int.from_bytes(self.file.read(size), "little")

    def string(self, what: str) -> str:
        length = self.number(2, what)
        self.file.seek(self.skip(length, what))
        return self.file.read(length).rstrip(b"\0").decode("utf-8", "replace")


def _parse_header(reader: _Reader) -> tuple[dict[str, Extent], dict[str, Any]]:
    path = reader.path
    version = reader.number(4, "the binary version")
    if version not in _VERSIONS:
        raise CheckpointError(f"{path}: CTranslate2 binary version {version}, expected one of {_VERSIONS}")
    metadata: dict[str, Any] = {"binary_version": version, "spec": reader.string("the spec's name")}
    metadata["revision"] = reader.number(4, "the spec's revision")
    variables: dict[str, Extent] = {}
    problems = []
    count = reader.number(4, "the variable count")
    if count * 8 > reader.size:  # the least that one takes: a name's length, rank, type and size
        raise CheckpointError(f"{path}: {count} variables cannot be in a file of {reader.size} bytes")
    for n in range(count):
        name = reader.string(f"the name of variable {n}")
        shape = tuple(reader.number(4, f"'{name}'") for _ in range(reader.number(1, f"'{name}'")))
        kind, size = reader.number(1, f"'{name}'"), reader.number(4, f"'{name}'")
        offset = reader.skip(size, f"'{name}'")
        if kind >= len(_DTYPES):
            problems.append(f"'{name}' has the unknown data type {kind}")
            continue
        extent = Extent(offset, np.dtype(_DTYPES[kind]), shape)
        if extent.nbytes != size:
            problems.append(f"'{name}' has {size} bytes for {extent.dtype} of shape {shape}")
        if name in variables:
            problems.append(f"'{name}' is listed twice")
        variables[name] = extent
    aliases = range(reader.number(4, "the alias count"))
    metadata["aliases"] = {reader.string("an alias"): reader.string("an alias") for _ in aliases}
    if problems:
        raise CheckpointError(f"{path}: {len(problems)} problem(s): " + "; ".join(problems))
    return variables, metadata
