"""Frozen encoder features on disk: one ArrayRecord file, written atomically, checked record by record when read."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes "bfloat16" a NumPy dtype)
import numpy as np

from alm_jax.audio.records import record_audio, record_place
from alm_jax.core.errors import DataError
from alm_jax.core.files import partial_path

_FORMAT = 1


def audio_sha256(path: str | Path) -> str:
    """sha256 of an audio file's bytes, or of a prepared clip's samples and rate.

    Raises:
        DataError: the file cannot be read.
    """
    if place := record_place(path):
        samples, rate = record_audio(*place)
        return hashlib.sha256(b"%d" % rate + samples.tobytes()).hexdigest()
    try:
        with Path(path).open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"{path}: cannot read audio: {e.strerror}") from None


def text_sha256(text: str) -> str:
    """sha256 of a text that stands for a clip."""
    return hashlib.sha256(text.encode()).hexdigest()


def feature_key(audio: str, *, frontend: Any, weights: str, taps: Sequence[int], dtype: str) -> str:
    """The key of a clip's features: sha256 of all that they depend on.

    Args:
        audio: `audio_sha256` of the clip's file, or `text_sha256` of the text in its place.
        frontend: the front end, a frozen dataclass whose `repr` names every setting.
        weights: hash of the encoder's (and any frozen reduction's) weights.
        taps: the encoder layers taken.
        dtype: of the features, `float16` etc.
    """
    parts = [_FORMAT, audio, repr(frontend), weights, [int(t) for t in taps], dtype]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class FeatureWriter:
    """Writes a features file, as a context manager.

    The file appears at `path` when the block ends, whole; after an error nothing is left. Its last record is the index,
    so one file holds all.

    Args:
        path: the file, by custom `*.array_record`.
        shape, dtype: of one clip's features.
    """

    def __init__(self, path: str | Path, shape: Sequence[int], dtype: str):
        self.path = Path(path)
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._temporary = partial_path(self.path)
        self._records: dict[str, tuple[int, int]] = {}
        self._clips: dict[str, str] = {}

    def __enter__(self) -> FeatureWriter:
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # one record a group for random access; float features hardly compress
        self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        return self

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def add(self, key: str, values: np.ndarray) -> None:
        """Add features under a new key.

        Raises:
            DataError: a wrong shape, or values that are not finite in `dtype`.
        """
        if values.shape != self.shape:
            raise DataError(f"{self.path}: features of shape {values.shape}, expected {self.shape}")
        with np.errstate(over="ignore"):  # an overflow is an error below
            values = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(values).all():
            raise DataError(f"{self.path}: features {key[:12]} are not finite in {self.dtype.name}")
        data = values.tobytes()
        self._records[key] = (len(self._records), zlib.crc32(data))
        self._writer.write(data)

    def link(self, clip: str | Path, key: str) -> None:
        """Note that the clip at a path, or a text, has the features `key` (several paths may hold the same audio)."""
        self._clips[str(clip)] = key

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if kind is None:
                index = {
                    "format": _FORMAT,
                    "shape": self.shape,
                    "dtype": self.dtype.name,
                    "records": self._records,
                    "clips": self._clips,
                }
                self._writer.write(json.dumps(index).encode())
            self._writer.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class FeatureStore:
    """Features of clips by key, or by the clip's path; read at random, in any thread or (pickled) process.

    Attributes:
        shape, dtype: of one clip's features.
        keys: key of each clip's path.
    """

    def __init__(self, path: Path):
        self.path = path
        self._reader = None
        self._lock = threading.Lock()
        try:
            records = self._open().num_records()
            index = json.loads(self._open().read([records - 1])[0])
        except Exception as e:  # ArrayRecord raises bare errors on missing and broken files
            raise DataError(
                f"{path}: not a whole features file; delete it, it is computed again ({_first(e)})"
            ) from None
        if index["format"] != _FORMAT or len(index["records"]) != records - 1:
            raise DataError(f"{path}: features of format {index['format']}, expected {_FORMAT}; delete the file")
        self.shape: tuple[int, ...] = tuple(index["shape"])
        self.dtype = np.dtype(index["dtype"])
        self.keys: dict[str, str] = index["clips"]
        self._records: dict[str, list[int]] = index["records"]

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open a file that `FeatureWriter` wrote.

        Raises:
            DataError: no such file, or a broken one.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such features file")
        return cls(path)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> np.ndarray:
        """One clip's features.

        Raises:
            KeyError: unknown key.
            DataError: the record is damaged.
        """
        number, crc = self._records[key]
        try:
            data = self._open().read([number])[0]
        except Exception as e:
            raise DataError(f"{self.path}: cannot read record {number} ({_first(e)})") from None
        if zlib.crc32(data) != crc:
            raise DataError(f"{self.path}: record {number} is damaged; delete the file, it is computed again")
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def of_clip(self, path: str | Path) -> np.ndarray:
        """The features of the clip at a path, or of a text that stands for one.

        Raises:
            DataError: no features of it, or they are damaged.
        """
        key = self.keys.get(str(path))
        if key is None:
            raise DataError(f"{self.path}: no features of {str(path)[:200]}")
        return self[key]

    def _open(self) -> Any:
        with self._lock:
            if self._reader is None:
                from array_record.python.array_record_module import ArrayRecordReader

                self._reader = ArrayRecordReader(str(self.path), "readahead_buffer_size:0,max_parallelism:0")
            return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_reader", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reader, self._lock = None, threading.Lock()


def _first(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0][:200]
