"""The data position as a pure function: which rows, of which data set, make up the batch of a step.

`Plan(step)` needs nothing but the rows' lengths and the `DataSpec`, so a run resumes at any step, on any number of
processes and workers, without iterator state.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from alm_jax.audio.segments import Segments
from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.sequence import Layout
from alm_jax.data.composed import Scenes
from alm_jax.data.layout import row_lengths
from alm_jax.data.rows import AudioRow, RowSet
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import Template
from alm_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_CHUNK = 8192
_SIZES_FORMAT = 3
_THREADS = 16  # headers that are read at once, which is waiting more than work

NO_ROW = (-1, -1, 0)
"""Entry of a place in a batch that no row takes (see `DataSpec.last`)."""


@dataclass(frozen=True)
class Source:
    """A file of rows (`data.rows`), heard `repeat` times an epoch."""

    rows: str
    repeat: int = 1


@dataclass(frozen=True)
class DataSpec:
    """What to read and in which order.

    Attributes:
        sources: the data sets; scenes and tasks are written, and become a `Source`, before a plan is made.
        batch_size: rows of the global batch of a step.
        buckets: row lengths (decoder positions, audio counted) that batches come in, ascending. A batch's rows fit in
            its bucket; a step is compiled once a bucket.
        seed: of the order and of what is random in a row.
        shuffle: a new order each epoch; otherwise the files' order (by the first row of each batch).
        mixing: `mixed` draws a batch from all sources, `one_source_per_batch` from one.
        ratios: of the sources' batches, where each has its own; empty: a source gives as many as its rows fill. An
            epoch is as long either way: a source that is asked for less goes on where it was in the next.
        last: what fills up the last batch of an epoch: rows of the same epoch once more (`wrap`, for training), or
            places without a row and without loss (`pad`, so that an evaluation counts every row once).
        segments: 1 hears the first window of each clip. With more a longer clip is heard in as many as it fills, this
            many at most, one after the other (APT; inference likewise): each takes a slot of the batch.
        max_slots: windows of the row of most, clips and segments counted. `alm plan` takes it for the largest batch,
            and rows of more are refused; None takes rows as they come, and in `alm plan` one window a row.
        max_bad_share: share of rows that may be bad, in the file or at loading, before the run stops.
        workers: processes that load batches; 0 loads in threads of this process.
    """

    sources: tuple[Source | Scenes | Tasks, ...]
    batch_size: int
    buckets: tuple[int, ...]
    seed: int = 0
    shuffle: bool = True
    mixing: Literal["mixed", "one_source_per_batch"] = "mixed"
    ratios: tuple[float, ...] = ()
    last: Literal["wrap", "pad"] = "wrap"
    segments: int = 1
    max_slots: int | None = None
    max_bad_share: float = 0.01
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}, expected at least 1")
        if self.segments < 1 or (self.max_slots is not None and self.max_slots < 1):
            raise ConfigError(f"segments is {self.segments}, max_slots {self.max_slots}: expected at least 1 of each")
        if not self.buckets or self.buckets[0] < 1 or list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"buckets are {self.buckets}, expected ascending row lengths")
        if any(source.repeat < 1 for source in self.sources):
            raise ConfigError("a source's repeat is below 1")
        if not self.sources:
            raise ConfigError("sources is empty, expected at least one")
        if self.workers < 0 or self.seed < 0:
            raise ConfigError(f"workers is {self.workers}, seed {self.seed}; expected 0 or more of each")
        if self.ratios and (len(self.ratios) != len(self.sources) or not min(self.ratios) > 0):
            raise ConfigError(
                f"ratios are {self.ratios}, expected a number above 0 for each of {len(self.sources)} sources"
            )
        if self.ratios and self.mixing != "one_source_per_batch":
            raise ConfigError(f"ratios are of batches of one source; mixing is {self.mixing!r}")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share is {self.max_bad_share}, expected 0 to 1")


@dataclass(frozen=True)
class PlannedBatch:
    """The global batch of a step.

    Attributes:
        step, epoch: counted from 0.
        bucket: row length of the batch in positions.
        entries: (source, row, seed) of each row of the global batch, or `NO_ROW`.
    """

    step: int
    epoch: int
    bucket: int
    entries: tuple[tuple[int, int, int], ...]


class Plan:
    """`plan(step) -> PlannedBatch`, the same on every process and in every run.

    An epoch holds every row `repeat` times. Its order is a permutation; rows go to the smallest bucket that holds them,
    in that order, and a bucket's rows that fill no batch go on to the next larger one; those that are left at the end
    share the epoch's last batch with `DataSpec.last`. Batches are then put in a random order. So no row is lost, and
    fewer than `batch_size` rows (per source with `one_source_per_batch`) are heard twice in an epoch.

    Args:
        lengths: int [n] positions of each row, per source.
        spec: sources beyond their `repeat`s, and paths, are not looked at.

    Raises:
        ConfigError: a row is longer than the largest bucket.
        DataError: no rows.
    """

    def __init__(self, lengths: Sequence[np.ndarray], spec: DataSpec):
        if len(lengths) != len(spec.sources) or not all(map(len, lengths)):
            raise DataError(f"rows per source are {[len(n) for n in lengths]}; expected some for each source")
        longest = max(int(np.max(n)) for n in lengths)
        if longest > spec.buckets[-1]:
            raise ConfigError(
                f"rows take up to {longest} positions, buckets end at {spec.buckets[-1]}: "
                "add a larger bucket or lower the layout's max_text_tokens"
            )
        self.spec = spec
        self.num_rows = sum(len(n) for n in lengths)
        self._counts = np.array([len(n) for n in lengths])
        repeats = [source.repeat for source in spec.sources]
        # an entry of an epoch is a number: sources one after the other, each `repeat` times over
        self._starts = np.concatenate([[0], np.cumsum(self._counts * repeats)])
        self._bucket_of = np.concatenate(
            [np.tile(np.searchsorted(spec.buckets, n).astype(np.int8), r) for n, r in zip(lengths, repeats)]
        )
        mixed = spec.mixing == "mixed"
        self._groups = [(0, int(self._starts[-1]))] if mixed else list(zip(self._starts[:-1], self._starts[1:]))
        self._own = [-(-int(end - start) // spec.batch_size) for start, end in self._groups]
        self.steps_per_epoch = sum(self._own)
        self._taken = _shares(spec.ratios, self.steps_per_epoch) if spec.ratios else self._own
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __call__(self, step: int) -> PlannedBatch:
        epoch, index = divmod(step, self.steps_per_epoch)
        buckets, entries = self._epoch(epoch)
        numbers = entries[index]
        sources = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = (numbers - self._starts[sources]) % self._counts[sources]
        seeds = np.random.SeedSequence((self.spec.seed, step)).generate_state(len(numbers))
        real = zip(sources.tolist(), rows.tolist(), seeds.tolist())
        return PlannedBatch(
            step=step,
            epoch=epoch,
            bucket=self.spec.buckets[buckets[index]],
            entries=tuple(NO_ROW if number < 0 else entry for number, entry in zip(numbers, real)),
        )

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(bucket of each batch, int32 [batches, batch_size] entries), kept for the last two epochs."""
        with self._lock:
            if epoch not in self._epochs:
                for old in sorted(self._epochs)[:-1]:
                    del self._epochs[old]
                self._epochs[epoch] = self._order(epoch)
            return self._epochs[epoch]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._batches(group, epoch * taken, taken) for group, taken in enumerate(self._taken)]
        bucket_of_batch, entries = map(np.concatenate, zip(*parts))
        order = (
            _permutation(len(entries), self.spec.seed, epoch, len(self._groups))
            if self.spec.shuffle
            else np.argsort(entries[:, 0], kind="stable")
        )
        return bucket_of_batch[order], entries[order]

    def _batches(self, group: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Batches `first` to `first + count - 1` of a group, in its own order of its own epochs."""
        own, buckets, batches = (
            self._own[group],
            [np.zeros(0, np.int8)],
            [np.zeros((0, self.spec.batch_size), np.int32)],
        )
        for epoch in range(first // own, -(-(first + count) // own)):
            bucket_of, entries = self._group_order(group, epoch)
            if count != own and self.spec.shuffle:  # parts of an epoch hold all buckets
                order = _permutation(own, self.spec.seed, epoch, group, own)
                bucket_of, entries = bucket_of[order], entries[order]
            part = slice(max(0, first - epoch * own), first + count - epoch * own)
            buckets.append(bucket_of[part])
            batches.append(entries[part])
        return np.concatenate(buckets), np.concatenate(batches)

    def _group_order(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(bucket of each batch, entries) of a group's epoch, bucket by bucket."""
        size, (start, end) = self.spec.batch_size, self._groups[number]
        order = np.arange(start, end, dtype=np.int32)
        if self.spec.shuffle:
            order = order[_permutation(len(order), self.spec.seed, epoch, number)]
        buckets: list[np.ndarray] = []
        batches: list[np.ndarray] = []
        bucket_of = self._bucket_of[order]
        left, largest = order[:0], int(bucket_of.max())
        for bucket in range(largest + 1):
            queue = np.concatenate([left, order[bucket_of == bucket]])
            full = len(queue) // size * size
            batches.append(queue[:full].reshape(-1, size))
            buckets.append(np.full(len(batches[-1]), bucket, np.int8))
            left = queue[full:]
        if len(left):
            wrap = np.resize(order, size - len(left))
            filling = wrap if self.spec.last == "wrap" else np.full_like(wrap, -1)
            batches.append(np.concatenate([left, filling])[None])
            buckets.append(np.full(1, largest, np.int8))
        return np.concatenate(buckets), np.concatenate(batches)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_epochs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._epochs, self._lock = {}, threading.Lock()


def _shares(ratios: Sequence[float], total: int) -> list[int]:
    """`total` divided in these ratios: whole numbers, the largest remainders rounded up."""
    exact = np.array(ratios) / sum(ratios) * total
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares.tolist()


def _permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of n, the same in every NumPy (of its random streams, only the bit generators' are promised)."""
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(n), kind="stable")


class Sizes(NamedTuple):
    """Of each row, int32 [n]: the positions that it takes, and the windows that it hears."""

    lengths: np.ndarray
    slots: np.ndarray


def measure(
    rows: RowSet,
    *,
    template: Template,
    layout: Layout,
    tokenizer: Tokenizer,
    audio_tokens: int,
    segments: Segments | None = None,
    cache_dir: str | Path | None = None,
) -> Sizes:
    """The sizes of all rows, by tokenizing them once; with `segments` by reading the headers of their clips too.

    They are kept in `cache_dir` under a key of everything that it depends on: the file (path, size, modification
    time), template, layout, tokenizer, `audio_tokens` and `segments`; clips are taken not to change under their names.
    """
    cache = None
    if cache_dir is not None and rows.stamp is not None:
        key = repr((_SIZES_FORMAT, rows.stamp, template, layout, tokenizer.fingerprint, audio_tokens, segments))
        cache = Path(cache_dir) / f"lengths-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if cache.is_file():
            sizes = np.load(cache)
            if sizes.shape == (2, len(rows)):
                return Sizes(*sizes)
    sizes = Sizes(*np.zeros((2, len(rows)), np.int32))
    logged = time.monotonic()
    for start in range(0, len(rows), _CHUNK):
        chunk = [rows[i] for i in range(start, min(start + _CHUNK, len(rows)))]
        parts = [template.parts(row) for row in chunk]
        slots = _slots(rows, chunk, segments)
        part = slice(start, start + len(chunk))
        sizes.lengths[part] = row_lengths(parts, layout, tokenizer, audio_tokens=audio_tokens, slots=slots)
        sizes.slots[part] = [sum(each) for each in slots]
        if time.monotonic() - logged > 10:
            _log.info("measured %d of %d rows", start + len(chunk), len(rows))
            logged = time.monotonic()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as f:
            np.save(f, np.stack(sizes))
        os.replace(temporary, cache)
    return sizes


def _slots(rows: RowSet, chunk: Sequence[AudioRow], segments: Segments | None) -> list[list[int]]:
    """Windows of each clip of some rows."""
    if segments is None:
        return [[1] * row.num_clips for row in chunk]
    paths = [list(map(rows.clip_path, row.clips)) for row in chunk]
    unique = list(dict.fromkeys(path for each in paths for path in each))
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = dict(zip(unique, pool.map(segments, unique)))
    return [[counts[path] for path in each] for each in paths]
