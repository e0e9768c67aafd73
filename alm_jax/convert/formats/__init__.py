"""Checkpoint files as read-only, lazily read named tensors, whatever their format.

`open_tensors` tells formats apart by content, so a renamed file still opens. No format runs code from a checkpoint.
"""

import fnmatch
import json
import struct
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from alm_jax.core.errors import CheckpointError

Index = tuple[slice, ...]


class TensorFile(Protocol):
    """Named tensors of one checkpoint; nothing but names and shapes is read before `read`."""

    path: Path
    metadata: dict[str, Any]  # what the file says of itself: see each format

    def keys(self) -> Iterable[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dtype(self, key: str) -> np.dtype:
        """Data type that `read` returns (`ml_dtypes.bfloat16` for bfloat16, float32 for quantised tensors)."""
        ...

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or the part of it that `index` (one slice an axis, leading axes first) selects."""
        ...


class Below:
    """The tensors of a part of a larger model: those whose keys have `prefix` in them, by what follows it.

    `section` of the `config.json` beside the file is the part's, where there is such a section.
    """

    def __init__(self, file: TensorFile, prefix: str, section: str = ""):
        self.path, self.metadata, self.section = file.path, file.metadata, section
        self._file = file
        self._names = {key.partition(prefix)[2]: key for key in file.keys() if prefix in key}

    def keys(self) -> Iterable[str]:
        return self._names.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._file.shape(self._names[key])

    def dtype(self, key: str) -> np.dtype:
        return self._file.dtype(self._names[key])

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        return self._file.read(self._names[key], index)


class Shards:
    """A sharded checkpoint: `*.index.json` with its `weight_map` from key to shard (the layout of Hugging Face).

    `metadata` is the index's own. All problems of all shards are raised as one CheckpointError.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            weight_map = dict(index["weight_map"])
            self.metadata = dict(index.get("metadata") or {})
        except (ValueError, KeyError, TypeError) as e:
            raise CheckpointError(f"{path}: expected JSON with a 'weight_map' from key to file, got {e!r}") from e
        self._owner: dict[str, TensorFile] = {}
        problems = []
        for name in sorted({str(name) for name in weight_map.values()}):
            problems += self._add_shard(name)
        missing = [key for key in weight_map if key not in self._owner]
        if missing and not problems:  # an unreadable shard explains its missing keys
            problems = [f"'{key}' is not in {weight_map[key]}" for key in missing]
        if problems:
            raise CheckpointError(f"{path}: {len(problems)} problem(s): " + "; ".join(problems))

    def _add_shard(self, name: str) -> list[str]:
        relative = PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or ":" in name:
            return [f"shard '{name}' lies outside the checkpoint's folder"]
        try:
            shard = open_tensors(self.path.parent / relative)
        except CheckpointError as e:
            return [str(e)]
        twice = [key for key in shard.keys() if key in self._owner]
        self._owner |= {key: shard for key in shard.keys()}
        return [f"'{key}' is in more than one shard, {name} the last" for key in twice]

    def keys(self) -> Iterable[str]:
        return self._owner.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._owner[key].shape(key)

    def dtype(self, key: str) -> np.dtype:
        return self._owner[key].dtype(key)

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        return self._owner[key].read(key, index)


# What a folder's weights are called, the preferred first. `model.bin` is CTranslate2's name.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "*.bin.index.json",
    "adapter_model.bin",
    "*.gguf",
    "model.bin",
    "*.safetensors",
)


def main_weights(names: Collection[str], where: str | Path) -> str:
    """The file among a folder's `names` to open for its weights (an index where they are sharded).

    Raises CheckpointError where there is none, or where several have an equal claim.
    """
    for pattern in WEIGHTS:
        found = fnmatch.filter(sorted(names), pattern)
        if len(found) > 1:
            raise CheckpointError(f"{where}: holds {', '.join(found)}: give the path of the one to read")
        if found:
            return found[0]
    raise CheckpointError(f"{where}: no weights found; expected one of {', '.join(WEIGHTS)}")


def open_tensors(path: str | Path) -> TensorFile:
    """Open a checkpoint: a file of any known format, an `*.index.json`, or a folder that holds one of these."""
    path = Path(path)
    if path.is_dir():
        path = path / main_weights([f.name for f in path.iterdir() if f.is_file()], path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return Shards(path)
    with path.open("rb") as f:
        head = f.read(64)
    return _reader(head, path)(path)


def _reader(head: bytes, path: Path) -> type[TensorFile]:
    """The reader for a file that begins with the 64 bytes `head`."""
    if head[:4] == b"GGUF":
        from alm_jax.convert.formats.gguf import Gguf

        return Gguf
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":  # a zip archive, or a bare pickle
        from alm_jax.convert.formats.pickles import TorchPickle

        return TorchPickle
    if head[8:9] == b"{":  # after a header length of 8 bytes
        from alm_jax.convert.formats.safetensors import Safetensors

        return Safetensors
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run 'git lfs pull' in its repository")
    if len(head) > 6:
        version, length = struct.unpack_from("<IH", head)
        if version < 256 and head[6:][length - 1 : length] == b"\0":  # a version, then the spec's name
            from alm_jax.convert.formats.ctranslate2 import CTranslate2

            return CTranslate2
    what = f"begins with {head[:8]!r}" if head else "is empty"
    raise CheckpointError(f"{path}: {what}; expected safetensors, a PyTorch file, GGUF or a CTranslate2 model")
