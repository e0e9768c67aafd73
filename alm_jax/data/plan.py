"""The data position as a pure function: which rows, of which data set, make up the batch of a step.

`Plan(step)` needs nothing but the rows' lengths and the `DataSpec`, so a run resumes at any step, on any number of
processes and workers, without iterator state.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from alm_jax.audio.segments import Segments
from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.files import new_file
from alm_jax.core.sequence import Layout
from alm_jax.data.composed import Scenes
from alm_jax.data.layout import row_lengths
from alm_jax.data.packing import Packs, alone, packed
from alm_jax.data.rows import AudioRow, RowSet
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.templates import Template
from alm_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_CHUNK = 8192
_SIZES_FORMAT = 3
_THREADS = 16  # headers that are read at once, which is waiting more than work

Entry = tuple[int, int, int]
"""(source, row, seed) of a row in a batch."""


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
        ratios: of the sources' rows, or of their batches where each has its own; empty: all rows of a source, `repeat`
            times. An epoch is as long either way: a source that is asked for less goes on where it was in the next.
        temperature: above 1 it evens the sources out: ratios, or without them the numbers of rows, are taken to the
            power of 1 / temperature (Raffel et al. 2020, section 3.5.2).
        pack: fills sequences of up to the largest bucket with rows of one source, which do not see each other
            (`core.sequence.pack`); then `batch_size` counts sequences. Needs `max_slots`.
        last: what fills up the last batch of an epoch: rows of the same epoch once more (`wrap`, for training), or
            places without a row and without loss (`pad`, so that an evaluation counts every row once).
        segments: 1 hears the first window of each clip. With more a longer clip is heard in as many as it fills, this
            many at most, one after the other (APT; inference likewise): each takes a slot of the batch.
        max_slots: windows of the row of most, clips and segments counted (with `pack`, of a sequence). `alm plan` takes
            it for the largest batch, and rows of more are refused; None takes rows as they come, and in `alm plan` one
            window a row.
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
    temperature: float = 1.0
    pack: bool = False
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
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}, expected a number above 0")
        if self.pack and self.max_slots is None:
            raise ConfigError("pack is given without max_slots: give the most windows that a sequence is to hear")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share is {self.max_bad_share}, expected 0 to 1")


@dataclass(frozen=True)
class PlannedBatch:
    """The global batch of a step.

    Attributes:
        step, epoch: counted from 0.
        bucket: row length of the batch in positions.
        sequences: the row in each place of the global batch, or the rows that are packed there; none in a place that is
            left empty (see `DataSpec.last`).
    """

    step: int
    epoch: int
    bucket: int
    sequences: tuple[tuple[Entry, ...], ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All its rows."""
        return tuple(entry for sequence in self.sequences for entry in sequence)


class Plan:
    """`plan(step) -> PlannedBatch`, the same on every process and in every run.

    An epoch holds every row `repeat` times. Its order is a permutation; rows go to the smallest bucket that holds them,
    in that order, and a bucket's rows that fill no batch go on to the next larger one; those that are left at the end
    share the epoch's last batch with `DataSpec.last`. Batches are then put in a random order. So no row is lost, and
    fewer than `batch_size` rows (per source with `one_source_per_batch`) are heard twice in an epoch. Where rows are
    packed, all this holds of sequences in their place.

    Args:
        lengths: int [n] positions of each row, per source.
        spec: sources beyond their `repeat`s, and paths, are not looked at.
        slots: int [n] windows of each row, per source, which packing heeds; None: none.

    Raises:
        ConfigError: a row is longer than the largest bucket.
        DataError: no rows.
    """

    def __init__(self, lengths: Sequence[np.ndarray], spec: DataSpec, slots: Sequence[np.ndarray] | None = None):
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
        self._packs = _packs(lengths, spec, slots)
        self._counts = np.array(list(map(len, self._packs)))
        repeats = np.array([source.repeat for source in spec.sources])
        # a sequence of an epoch is a number: sources one after the other, each `repeat` times over
        self._starts = np.concatenate([[0], np.cumsum(self._counts * repeats)])
        totals = [packs.sums(n) for packs, n in zip(self._packs, lengths)]
        self._bucket_of = np.concatenate(
            [np.tile(np.searchsorted(spec.buckets, n).astype(np.int8), r) for n, r in zip(totals, repeats)]
        )
        ratios = _ratios(spec, np.array(list(map(len, lengths))) * repeats)
        total, whole = int(self._starts[-1]), list(zip(self._starts[:-1], self._starts[1:]))
        mixed = spec.mixing == "mixed"
        self._drawn = _shares(ratios, total) if mixed and len(ratios) else None
        self._groups = [(0, total)] if mixed else whole
        self._own = [-(-int(end - start) // spec.batch_size) for start, end in self._groups]
        self.steps_per_epoch = sum(self._own)
        self._taken = self._own if mixed or not len(ratios) else _shares(ratios, self.steps_per_epoch)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __call__(self, step: int) -> PlannedBatch:
        epoch, index = divmod(step, self.steps_per_epoch)
        buckets, numbers = self._epoch(epoch)
        places = [self._rows(number) for number in numbers[index].tolist()]
        seeds = np.random.SeedSequence((self.spec.seed, step)).generate_state(sum(map(len, places)))
        seed = iter(seeds.tolist())
        return PlannedBatch(
            step=step,
            epoch=epoch,
            bucket=self.spec.buckets[buckets[index]],
            sequences=tuple(tuple((source, row, next(seed)) for source, row in rows) for rows in places),
        )

    def largest(self, sizes: Sequence[np.ndarray]) -> int:
        """The largest sum of a size of the rows, int [n] per source, over those of a sequence."""
        return max(int(packs.sums(each).max()) for packs, each in zip(self._packs, sizes))

    def _rows(self, number: int) -> list[tuple[int, int]]:
        """(source, row) of each row of a sequence of an epoch; none of -1."""
        if number < 0:
            return []
        source = int(np.searchsorted(self._starts, number, side="right")) - 1
        rows = self._packs[source][(number - self._starts[source]) % self._counts[source]]
        return [(source, row) for row in rows.tolist()]

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
        for epoch, part in _parts(first, count, own):
            bucket_of, entries = self._group_order(group, epoch)
            if count != own and self.spec.shuffle:  # parts of an epoch hold all buckets
                order = _permutation(own, self.spec.seed, epoch, group, own)
                bucket_of, entries = bucket_of[order], entries[order]
            buckets.append(bucket_of[part])
            batches.append(entries[part])
        return np.concatenate(buckets), np.concatenate(batches)

    def _group_order(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(bucket of each batch, entries) of a group's epoch, bucket by bucket."""
        size, (start, end) = self.spec.batch_size, self._groups[number]
        order = np.arange(start, end, dtype=np.int32) if self._drawn is None else self._draw(epoch)
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

    def _draw(self, epoch: int) -> np.ndarray:
        """The sequences of a mixed epoch, as many of each source as its ratio asks for, source by source."""
        drawn = []
        for source, count in enumerate(self._drawn):
            start, end = self._starts[source : source + 2].tolist()
            for own, part in _parts(epoch * count, count, end - start):
                order = np.arange(start, end, dtype=np.int32)
                if self.spec.shuffle:
                    order = order[_permutation(len(order), self.spec.seed, own, source, len(self._counts))]
                drawn.append(order[part])
        return np.concatenate(drawn)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_epochs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._epochs, self._lock = {}, threading.Lock()


def _packs(lengths: Sequence[np.ndarray], spec: DataSpec, slots: Sequence[np.ndarray] | None) -> list[Packs]:
    """The sequences of each source."""
    if not spec.pack:
        return [alone(len(n)) for n in lengths]
    limits = {"length": spec.buckets[-1], "max_slots": spec.max_slots}
    found = []
    for source, n in enumerate(lengths):
        order = _permutation(len(n), spec.seed, source) if spec.shuffle else np.arange(len(n))
        found.append(packed(n, np.zeros_like(n) if slots is None else slots[source], order, **limits))
    return found


def _ratios(spec: DataSpec, rows: np.ndarray) -> np.ndarray:
    """What sources are asked for, relative to each other; empty: all that they have (`rows`, repeats counted)."""
    if spec.temperature == 1:
        return np.array(spec.ratios)
    weights = np.array(spec.ratios or rows, float)
    return (weights / weights.max()) ** (1 / spec.temperature)


def _parts(first: int, count: int, own: int) -> Iterator[tuple[int, slice]]:
    """(epoch, what of it) that `count` items from item `first` on are, of epochs of `own` items."""
    for epoch in range(first // own, -(-(first + count) // own)):
        yield epoch, slice(max(0, first - epoch * own), first + count - epoch * own)


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
        with new_file(cache) as partial, partial.open("wb") as f:
            np.save(f, np.stack(sizes))
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
