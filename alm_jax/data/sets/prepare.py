"""A published set's files to shards: resumable, on any number of processes, or under Apache Beam."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.files import write_text
from alm_jax.data.sets.base import DataSet, Report
from alm_jax.data.sets.builder import VERSION, write_metadata
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.shards import SHARD_CLIPS, STATE, Shard, Written, finished, leftovers, make_plan, write_shard
from alm_jax.data.workers import each

REPORT = "report.jsonl"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What was prepared.

    Attributes:
        folder: where it stands.
        clips: how many each split has.
        report: what was left out, also in `report.jsonl`.
        new_shards, shards: how many were written now, of how many.
    """

    folder: Path
    clips: dict[str, int]
    report: Report
    new_shards: int
    shards: int

    @property
    def bad_share(self) -> float:
        """Problems, as a share of clips and problems."""
        total = sum(self.clips.values()) + len(self.report)
        return len(self.report) / total if total else 0.0


def target(data: str | Path, name: str) -> Path:
    """Where a set stands below a folder of prepared sets, as TFDS lays them out."""
    return Path(data).expanduser() / name / VERSION


def prepare(
    dataset: DataSet,
    src: str | Path,
    data: str | Path,
    *,
    workers: int = 1,
    max_seconds: float | None = None,
    shard_clips: int = SHARD_CLIPS,
    beam_runner: str = "",
    beam_options: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> Outcome:
    """Write a set's shards, index, report and TFDS metadata to `data/NAME/VERSION`.

    Shards that are there, made from the same files, stay as they are; so what was interrupted goes on, and a second run
    does what is left. The files do not depend on `workers`, on Beam, nor on interruptions.

    Args:
        src: the set's files as its authors publish them, extracted or in zip and tar archives.
        max_seconds: longer clips are cut to it.
        shard_clips: clips of a shard, on average.
        beam_runner: name of an Apache Beam runner that writes the shards; all its workers see `src` and `data`.
        beam_options: its options, as `--region=...`.

    Raises:
        DataError: files that are expected are not there, nothing could be read, or the disk cannot be written.
        ConfigError: Beam is not installed.
    """
    from filelock import FileLock

    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise ConfigError(f"max_seconds is {max_seconds}; expected more than 0")
    report, out = Report(), target(data, dataset.name)
    files = Files(src, report)
    dataset.check(files)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock"):
            shards = make_plan(dataset, files, report, out, max_seconds=max_seconds, shard_clips=shard_clips)
            for path in leftovers(shards, out):
                path.unlink()
            if beam_runner:
                before = {shard: finished(shard) for shard in shards}
                _under_beam(shards, beam_runner, beam_options)
                written = {shard: write_shard(shard) for shard in shards}
            else:
                before, written = _write(shards, workers, progress)
            for shard in shards:
                for problem in written[shard].problems:
                    report.add(*problem)
            write_text(out / REPORT, report.text())
            _describe(dataset, out, shards, written)
    except (OSError, BrokenExecutor) as error:
        raise DataError(
            f"{out}: cannot be written ({error}); what is finished is kept, run it again to go on"
        ) from None
    clips = dict.fromkeys((split for split in dataset.splits if any(shard.split == split for shard in shards)), 0)
    for shard in shards:
        clips[shard.split] += written[shard].clips
    new = sum(before[shard] is None or before[shard].key != written[shard].key for shard in shards)
    return Outcome(out, clips, report, new, len(shards))


def _write(
    shards: list[Shard], workers: int, progress: Progress
) -> tuple[dict[Shard, Written | None], dict[Shard, Written]]:
    """What was known of each shard before, and is now."""
    before = {shard: finished(shard) for shard in shards}
    total, done, written = sum(len(shard.lines) for shard in shards), 0, {}
    progress(0, total)
    for shard, result in each(write_shard, shards, workers):
        written[shard] = result
        done += len(shard.lines)
        progress(done, total)
    return before, written


def _under_beam(shards: list[Shard], runner: str, options: Sequence[str]) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ConfigError(
            f"--beam-runner {runner} needs Apache Beam: pip install 'alm_jax[beam]', in an environment of its own, "
            "since Beam pins an older protobuf"
        ) from None
    with beam.Pipeline(runner, options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | beam.Create(shards) | beam.Reshuffle() | beam.Map(write_shard)


def _describe(dataset: DataSet, out: Path, shards: list[Shard], written: dict[Shard, Written]) -> None:
    """TFDS's metadata, written anew where a shard is new."""
    keys = hashlib.sha256("".join(written[shard].key for shard in shards).encode()).hexdigest()
    noted = out / STATE / "described"
    if noted.is_file() and noted.read_text() == keys and (out / "dataset_info.json").is_file():
        return
    splits: dict[str, list[tuple[int, int]]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append((written[shard].clips, written[shard].size))
    write_metadata(dataset, out, {split: sizes for split, sizes in splits.items() if sum(n for n, _ in sizes)})
    write_text(noted, keys)
