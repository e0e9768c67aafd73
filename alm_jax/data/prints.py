"""Fingerprints of many clips on disk: beside the shards of a prepared set, else in the cache."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from math import ceil
from pathlib import Path

import numpy as np

from alm_jax.audio.fingerprint import FORMAT, MAX_SECONDS, fingerprint
from alm_jax.audio.io import load_audio
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import AudioError, DataError
from alm_jax.core.files import new_file
from alm_jax.data.workers import each

_PART = 512  # clips of a file
Prints = list[np.ndarray]


def write_prints(path: Path, prints: Sequence[np.ndarray]) -> None:
    """Write fingerprints, the same bytes for the same ones; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    peaks = np.concatenate([np.zeros(0, np.uint32), *prints])
    with new_file(path) as partial, partial.open("wb") as file:
        np.savez(file, format=FORMAT, counts=np.array(list(map(len, prints)), np.int32), peaks=peaks)


def read_prints(path: Path) -> Prints:
    """What `write_prints` wrote.

    Raises:
        DataError: it cannot be read, or is of another version's fingerprints.
    """
    try:
        with np.load(path) as held:
            form, counts, peaks = held["format"], held["counts"], held["peaks"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no fingerprints can be read ({error}): prepare the set again") from None
    if form != FORMAT:
        raise DataError(f"{path}: fingerprints of version {form}, expected {FORMAT}: prepare the set again")
    return np.split(peaks, np.cumsum(counts)[:-1]) if len(counts) else []


def file_prints(
    clips: Sequence[Path], *, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[Sequence[Path], Prints]]:
    """Sound files, some hundreds at a time, and their fingerprints; a file that cannot be read has no peaks.

    They are kept in the cache (`$ALM_CACHE/fingerprints`), so that after a stop the rest is heard.

    Raises:
        DataError: the cache cannot be written, or a worker died.
    """
    parts: dict[int, list[Path]] = {}
    for clip in clips:
        parts.setdefault(zlib.crc32(str(clip).encode()) % ceil(len(clips) / _PART), []).append(clip)
    done = 0
    progress(done, len(clips))
    try:
        for part, path in each(_written, [tuple(parts[number]) for number in sorted(parts)], workers):
            done += len(part)
            progress(done, len(clips))
            yield part, read_prints(path)
    except (OSError, BrokenExecutor) as error:
        raise DataError(f"fingerprints cannot be kept ({error}); what is finished is, run it again") from None


def _written(clips: tuple[Path, ...]) -> Path:
    """The file of some clips' fingerprints."""
    key = hashlib.sha256(repr((FORMAT, [(str(clip), _stamp(clip)) for clip in clips])).encode()).hexdigest()[:32]
    path = cache_dir() / "fingerprints" / f"{key}.npz"
    if not path.is_file():
        write_prints(path, [_heard(clip) for clip in clips])
    return path


def _heard(clip: Path) -> np.ndarray:
    try:
        return fingerprint(*load_audio(clip, max_seconds=MAX_SECONDS))
    except AudioError:
        return np.zeros(0, np.uint32)


def _stamp(clip: Path) -> tuple[int, int] | None:
    try:
        status = clip.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
