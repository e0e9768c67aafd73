"""The pipeline: planned steps to loaded batches, in threads or worker processes (Grain).

A batch is a pure function of its step, so the same steps give the same batches with any number of workers, and a run
resumes by starting at a later step.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.audio.io import load_audio
from alm_jax.audio.segments import Segments, longer, split
from alm_jax.core.errors import AudioError, ConfigError, DataError
from alm_jax.core.sequence import Batch, Layout, Row, collate, pack
from alm_jax.data.captions import Captions
from alm_jax.data.features import FeatureStore
from alm_jax.data.layout import lay_out
from alm_jax.data.plan import DataSpec, Entry, Plan, PlannedBatch, measure
from alm_jax.data.rows import Hears, RowSet, read_rows
from alm_jax.data.templates import Template
from alm_jax.data.tokenizer import Tokenizer
from alm_jax.data.waveforms import Waveforms
from alm_jax.data.workers import start_worker

_log = logging.getLogger(__name__)
_THREADS = 2  # batches loaded at once without workers; each holds the interpreter lock while it tokenizes
_AHEAD = 4  # batches ready before they are asked for, per reader
_SHARED_MEMORY_FROM = 1 << 16  # bytes; smaller arrays are cheaper to copy
_BAD_GRACE = 1000  # rows over which the share of bad ones is taken at least


class FrontEnd(Protocol):
    """What the pipeline needs of an encoder's front end (`alm_jax.audio.frontend`)."""

    sample_rate: int
    max_seconds: float | None
    feature_shape: tuple[int | None, ...]

    def numpy(self, wave: np.ndarray) -> np.ndarray:
        """float32 [n] to one encoder window of `feature_shape`."""


class LoadedBatch(NamedTuple):
    """One process's rows of a step.

    Attributes:
        step: the step.
        batch: NumPy arrays, this process's rows.
        planned: the global batch that they belong to.
        bad: a message for each row that could not be loaded; it stands in the batch without audio and without loss.
    """

    step: int
    batch: Batch
    planned: PlannedBatch
    bad: list[str]


@dataclass(frozen=True)
class DataPipeline:
    """Loads the batches of a plan.

    Attributes:
        plan: which rows a step takes.
        rowsets: the plan's sources.
        template, layout, tokenizer: how a row becomes positions.
        audio: the front end that clips go through (`Captions` where they are texts, `Waveforms` where the step makes
            their frames), or a store of their precomputed features.
        hears: whether rows are heard by their files or their captions.
        audio_tokens: T, the aligner's tokens a slot.
        slots: int [n] windows of each row, per source (`plan.measure`); None: one at most, and nothing packed. A batch
            has as many slots as its row of most, at least one if there is `audio`: rows of several cost others nothing
            where they keep to their own batches (`mixing="one_source_per_batch"`).
        aligner_tokenizer: of an aligner that reads text; what it reads is as long in every batch as the layout says.
        augment: `augment(window, rng)` of each clip's window of frames, random by the plan's seed.
        process_index, process_count: this process takes its block of consecutive rows of each global batch, so that
            the blocks in the processes' order are the planned batch.

    Raises:
        ConfigError: the batch does not divide among the processes, what has no frames is to be augmented, or clips
            cannot be heard in segments; rows take more slots than `max_slots`.
    """

    plan: Plan
    rowsets: tuple[RowSet, ...]
    template: Template
    layout: Layout
    tokenizer: Tokenizer
    audio: FrontEnd | Captions | Waveforms | FeatureStore | None
    audio_tokens: int
    hears: Hears = "audio"
    slots: tuple[np.ndarray, ...] | None = None
    aligner_tokenizer: Tokenizer | None = None
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        size = self.plan.spec.batch_size
        if size % self.process_count:
            raise ConfigError(f"batch_size {size} does not divide among {self.process_count} processes")
        if self.augment is not None and isinstance(self.audio, FeatureStore | Captions | Waveforms):
            raise ConfigError(
                "samples, features and texts cannot be augmented: hear the frames of clips, or leave augment out"
            )
        if self.audio is None and self._most_slots:
            raise ConfigError(f"rows of {self._most_slots} clips need a front end or a feature store")
        if self.slots is None and self.plan.spec.pack:
            raise ConfigError("data.pack needs the windows of each row: make the pipeline by make_pipeline")
        if self.plan.spec.segments > 1 and not isinstance(self.audio, KaldiFbank):
            raise ConfigError(
                f"data.segments is {self.plan.spec.segments}, and {type(self.audio).__name__} hears one window of a "
                "clip: leave segments out (features='live' if they are cached, front_end='host' if the device makes "
                "frames, hears='audio' if texts stand for clips)"
            )
        if self._most_slots > (self.plan.spec.max_slots or self._most_slots):
            raise ConfigError(
                f"a row hears {self._most_slots} windows, data.max_slots is {self.plan.spec.max_slots}: raise it, "
                "lower data.segments, or leave such rows out"
            )
        if self.audio is not None and None in self._window:
            raise ConfigError(f"windows of {self._window} have no fixed shape: give the front end a number of frames")

    def iterate(self, start_step: int, num_steps: int) -> Iterator[LoadedBatch]:
        """The batches of steps `start_step` to `start_step + num_steps - 1`, in order, loaded ahead.

        With workers, call it under `if __name__ == "__main__":` (they are spawned). Bad rows are logged.

        Raises:
            DataError: more than the plan's `max_bad_share` of the rows loaded by this process are bad.
        """
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which are parsed in absl's programs alone
        spec = self.plan.spec
        steps = grain.MapDataset.range(start_step, start_step + num_steps).map(self.load)
        if spec.workers:
            serial = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            dataset = grain.experimental.WithOptionsIterDataset(
                steps.to_iter_dataset(serial),
                grain.experimental.DatasetOptions(min_shm_size=self._shared_memory_from()),
            ).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=spec.workers, per_worker_buffer_size=_AHEAD),
                worker_init_fn=_start_worker,
            )
        else:
            dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD))
        iterator = iter(dataset)
        seen, bad = 0, 0
        try:
            for loaded in iterator:
                for message in loaded.bad:
                    _log.warning("step %d: bad row left out: %s", loaded.step + 1, message)  # as metrics count them
                seen, bad = seen + sum(map(len, self._block(loaded.planned))), bad + len(loaded.bad)
                if bad > spec.max_bad_share * max(seen, min(_BAD_GRACE, self.plan.num_rows)):
                    raise DataError(
                        f"{bad} of {seen} rows are bad, more than max_bad_share {spec.max_bad_share:.2%} allows; "
                        f"the last: {loaded.bad[-1]}"
                    )
                yield loaded
        finally:
            iterator.close()

    def load(self, step: int) -> LoadedBatch:
        """This process's rows of one step; pure, and safe in any thread."""
        planned = self.plan(step)
        sequences, rows, bad = self._block(planned), [], []
        slots = self._slots(planned)
        audio = np.zeros((len(sequences), slots, *self._window), self._dtype) if slots else None
        filled = np.zeros((len(sequences), slots), np.int32)
        for b, sequence in enumerate(sequences):
            parts, heard = [], 0
            for entry in sequence:
                row, windows, problem = self._load_row(entry)
                for slot, window in enumerate(windows, heard):
                    audio[b, slot, : len(window)] = window
                    filled[b, slot] = len(window)
                parts.append(row)
                heard += len(row.clips)
                if problem:
                    bad.append(problem)
            rows.append(pack(parts, audio_tokens=self.audio_tokens) if parts else _EMPTY)
        aligner_length = None if self.aligner_tokenizer is None else self.layout.aligner_text_tokens
        batch = replace(collate(rows, planned.bucket, slots=slots, aligner_length=aligner_length), audio=audio)
        if isinstance(self.audio, Waveforms):
            batch = replace(batch, audio_samples=filled)
        return LoadedBatch(step, batch, planned, bad)

    def _block(self, planned: PlannedBatch) -> tuple[tuple[Entry, ...], ...]:
        """The sequences of a batch that this process loads."""
        size = len(planned.sequences) // self.process_count
        return planned.sequences[self.process_index * size : (self.process_index + 1) * size]

    def _load_row(self, entry: Entry) -> tuple[Row, list[np.ndarray], str]:
        """The row of an entry, its windows, and its problem (empty: none), which leaves it without windows."""
        source, index, seed = entry
        rows = self.rowsets[source]
        laid_out = _EMPTY
        try:
            row = rows[index]
            heard = rows.heard(row, self.hears)
            counts = [1 if self._segments is None else self._segments(clip) for clip in heard]
            laid_out = lay_out(
                self.template.parts(row),
                self.layout,
                self.tokenizer,
                audio_tokens=self.audio_tokens,
                slots=counts,
                aligner_tokenizer=self.aligner_tokenizer,
            )
            rng = np.random.default_rng(seed)
            clips = dict.fromkeys(laid_out.clips)
            found = [window for clip in clips for window in self._hear(heard[clip], counts[clip], rng)]
        except (AudioError, DataError) as e:
            return replace(laid_out, loss_weight=np.zeros_like(laid_out.loss_weight)), [], f"{rows.name(index)}: {e}"
        return laid_out, found, ""

    def _hear(self, clip: Path | str, count: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        """The windows of a clip."""
        if isinstance(self.audio, FeatureStore):
            return [self.audio.of_clip(clip)]
        if isinstance(self.audio, Captions):
            return [self.audio.numpy(clip)]
        heard = self.audio if count == 1 else longer(self.audio, count)
        wave, _ = load_audio(clip, sample_rate=heard.sample_rate, max_seconds=heard.max_seconds)
        found = [self.audio.numpy(wave)] if count == 1 else split(self.audio, wave, count)
        return found if self.augment is None else [self.augment(window, rng) for window in found]

    def _slots(self, planned: PlannedBatch) -> int:
        """A of a batch: the same on every process, since it is that of all processes' rows."""
        if self.audio is None or self.slots is None:
            return int(self.audio is not None)
        counts = (sum(int(self.slots[source][row]) for source, row, _ in rows) for rows in planned.sequences)
        return max(1, *counts)

    @property
    def _most_slots(self) -> int:
        return 1 if self.slots is None else self.plan.largest(self.slots)

    @property
    def _segments(self) -> Segments | None:
        return Segments(self.audio, self.plan.spec.segments) if self.plan.spec.segments > 1 else None

    @property
    def _window(self) -> tuple[int, ...]:
        return self.audio.shape if isinstance(self.audio, FeatureStore) else self.audio.feature_shape

    @property
    def _dtype(self) -> np.dtype:
        return getattr(self.audio, "dtype", np.dtype(np.float32))

    def _shared_memory_from(self) -> int:
        """Smallest array, in bytes, that workers pass by shared memory; none where containers give too little of it."""
        spec = self.plan.spec
        rows = spec.batch_size // self.process_count
        window = int(np.prod(self._window)) * self._dtype.itemsize if self.audio is not None else 0
        needed = rows * self._most_slots * window * spec.workers * (_AHEAD + 2)
        folder = "/dev/shm"
        if os.path.isdir(folder) and shutil.disk_usage(folder).free < 2 * needed:
            _log.warning("%s is too small for %d MB of batches; workers copy them", folder, needed >> 20)
            return needed
        return _SHARED_MEMORY_FROM


def make_pipeline(
    spec: DataSpec,
    *,
    template: Template,
    layout: Layout,
    tokenizer: Tokenizer,
    audio: FrontEnd | Captions | Waveforms | FeatureStore | None,
    audio_tokens: int,
    hears: Hears = "audio",
    aligner_tokenizer: Tokenizer | None = None,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    cache_dir: str | Path | None = None,
    choose: Callable[[RowSet], RowSet] = lambda rows: rows,
    process_index: int = 0,
    process_count: int = 1,
) -> DataPipeline:
    """Read a spec's rows, `choose` some, measure them (kept in `cache_dir`), plan, and make the pipeline.

    Raises:
        DataError: unreadable rows, or too many bad ones.
        ConfigError: a spec that does not fit the rows.
    """
    rowsets = tuple(choose(read_rows(source.rows, max_bad_share=spec.max_bad_share)) for source in spec.sources)
    for rows in rowsets:
        for bad in rows.bad:
            _log.warning("bad row left out: %s", bad)
    sizes = [
        measure(
            rows,
            template=template,
            layout=layout,
            tokenizer=tokenizer,
            audio_tokens=audio_tokens,
            segments=Segments(audio, spec.segments) if spec.segments > 1 and isinstance(audio, KaldiFbank) else None,
            cache_dir=cache_dir,
        )
        for rows in rowsets
    ]
    return DataPipeline(
        plan=Plan([each.lengths for each in sizes], spec, [each.slots for each in sizes]),
        rowsets=rowsets,
        template=template,
        layout=layout,
        tokenizer=tokenizer,
        audio=audio,
        audio_tokens=audio_tokens,
        hears=hears,
        slots=tuple(each.slots for each in sizes),
        aligner_tokenizer=aligner_tokenizer,
        augment=augment,
        process_index=process_index,
        process_count=process_count,
    )


def _empty_row() -> Row:
    none = np.zeros(0, np.int32)
    return Row(none, none, none, none, none.astype(np.float32), none.astype(np.bool_))


_EMPTY = _empty_row()


def _start_worker(index: int, count: int) -> None:
    """Set up a worker process of Grain, which takes no accelerator."""
    del index, count
    import jax

    jax.config.update("jax_platforms", "cpu")
    start_worker()
