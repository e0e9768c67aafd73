"""Shards: which clips each holds, written one by one, the same bytes whenever and wherever."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.audio.fingerprint import FORMAT, fingerprint
from alm_jax.audio.io import load_audio
from alm_jax.audio.records import WRITER_OPTIONS, encode_example
from alm_jax.core.errors import AudioError
from alm_jax.core.files import new_file, partial_path, write_text
from alm_jax.data.prints import write_prints
from alm_jax.data.sets.base import DataSet, Item, Report
from alm_jax.data.sets.files import Files, opened, outside
from alm_jax.data.sets.index import CLIPS, PRINTS

SHARD_CLIPS = 512  # on average; 10 s of 16 bits at 32 kHz make 330 MB
_FORMAT = 2
STATE = ".prepare"
"""Folder of a prepared set: what is known of finished shards."""


@dataclass(frozen=True)
class Shard:
    """One shard to write, small enough to be sent to any process.

    Attributes:
        name, split: of the set. index, count: which shard of the split it is, of how many.
        plan: file whose lines are clips. lines: where those of this shard begin, in bytes.
        root: the set's files. out: the prepared set.
        max_seconds: longer clips are cut to it.
    """

    name: str
    split: str
    index: int
    count: int
    plan: Path
    lines: tuple[int, ...]
    root: Path
    out: Path
    max_seconds: float | None

    @property
    def path(self) -> Path:
        """Its file, named as TFDS names them."""
        return self.out / f"{self.name}-{self.split}.array_record-{self.index:05d}-of-{self.count:05d}"

    @property
    def clips(self) -> Path:
        """The index of its clips: a JSON line each, in the records' order."""
        return self.out / CLIPS / f"{self.split}-{self.index:05d}-of-{self.count:05d}.jsonl"

    @property
    def prints(self) -> Path:
        """The fingerprints of its clips, in the records' order."""
        return self.out / PRINTS / f"{self.split}-{self.index:05d}-of-{self.count:05d}.npz"

    @property
    def state(self) -> Path:
        """What is known of it once it is finished."""
        return self.out / STATE / f"{self.split}-{self.index:05d}-of-{self.count:05d}.json"


@dataclass(frozen=True)
class Written:
    """A finished shard.

    Attributes:
        key: of all that it is made from.
        clips, size: how many it holds, and its bytes.
        problems: clips that were left out: (kind, place, detail).
    """

    key: str
    clips: int
    size: int
    problems: tuple[tuple[str, str, str], ...]


def make_plan(
    dataset: DataSet,
    files: Files,
    report: Report,
    out: Path,
    *,
    max_seconds: float | None = None,
    shard_clips: int = SHARD_CLIPS,
) -> list[Shard]:
    """Read the set's tables, check each clip, and share the clips out to shards by their ids.

    A clip's shard does not depend on other clips (but for the number of shards, which is that of the clips listed,
    good and bad), so that a file added later changes one shard. Bad clips go to the report, as do sounds of the folder
    that no table names.
    """
    folder = out / STATE
    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, int] = dict.fromkeys(dataset.splits, 0)
    places: dict[str, tuple[list[int], list[int]]] = {split: ([], []) for split in dataset.splits}
    seen, used, known = set(), set(), set(dataset.labels)
    partial = {split: partial_path(folder / f"plan-{split}.jsonl") for split in dataset.splits}
    handles = {split: path.open("wb") for split, path in partial.items()}
    try:
        for item in dataset.read(files, report):
            if item.split not in listed:
                report.add("unknown split", item.id, f"{item.split!r}, expected one of {', '.join(dataset.splits)}")
                continue
            listed[item.split] += 1
            clip = _checked(item, files, report, seen, used, known)
            if clip is not None:
                offsets, hashes = places[item.split]
                offsets.append(handles[item.split].tell())
                hashes.append(zlib.crc32(item.id.encode()))
                handles[item.split].write(json.dumps(clip, ensure_ascii=False).encode() + b"\n")
    finally:
        for handle in handles.values():
            handle.close()
    for split, path in partial.items():
        os.replace(path, folder / f"plan-{split}.jsonl")
    if dataset.owns_folder:
        for place in files.sounds():
            if place not in used:
                report.add("in no split", place, "no table of the set names it")
    return [
        Shard(
            name=dataset.name,
            split=split,
            index=index,
            count=count,
            plan=folder / f"plan-{split}.jsonl",
            lines=tuple(lines),
            root=files.root,
            out=out,
            max_seconds=max_seconds,
        )
        for split, (offsets, hashes) in places.items()
        if offsets and (count := math.ceil(listed[split] / shard_clips))
        for index, lines in enumerate(_share_out(offsets, hashes, count))
    ]


def write_shard(shard: Shard) -> Written:
    """Write a shard unless it is there, made from the same files in the same way.

    Raises:
        OSError: the disk cannot be written.
    """
    with shard.plan.open("rb") as plan:
        lines = []
        for start in shard.lines:
            plan.seek(start)
            lines.append(plan.readline())
    key = hashlib.sha256(repr((_FORMAT, FORMAT, shard.max_seconds)).encode() + b"".join(lines)).hexdigest()
    written = finished(shard)
    if written is not None and written.key == key:
        return written

    from array_record.python.array_record_module import ArrayRecordWriter

    index, prints, problems = [], [], []
    shard.clips.parent.mkdir(parents=True, exist_ok=True)
    with new_file(shard.path) as partial:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        for line in lines:
            clip = json.loads(line)
            try:
                samples, rate = _samples(shard, clip)
            except (AudioError, OSError) as error:
                kind = "zero-length audio" if "holds no samples" in str(error) else "unreadable audio"
                problems.append((kind, clip["audio"], str(error)))
                continue
            writer.write(encode_example(_fields(clip, samples, rate)))
            prints.append(fingerprint(samples.astype(np.float32) / 32768.0, rate))
            told = {name: value for name, value in clip.items() if name not in ("audio", "stamp")}
            index.append(told | {"seconds": round(len(samples) / rate, 4)})
        writer.close()
    write_prints(shard.prints, prints)
    write_text(shard.clips, "".join(json.dumps(told, ensure_ascii=False) + "\n" for told in index))
    written = Written(key, len(index), shard.path.stat().st_size, tuple(problems))
    write_text(shard.state, json.dumps(written.__dict__, ensure_ascii=False))
    return written


def finished(shard: Shard) -> Written | None:
    """What is known of a shard that is there, whole; None otherwise."""
    try:
        told = json.loads(shard.state.read_text(encoding="utf-8"))
        written = Written(told["key"], told["clips"], told["size"], tuple(map(tuple, told["problems"])))
        there = shard.clips.is_file() and shard.prints.is_file() and shard.path.stat().st_size == written.size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return written if there else None


def leftovers(shards: list[Shard], out: Path) -> Iterator[Path]:
    """Files of an earlier preparation that are of no use: other numbers of shards, and what a killed process left."""
    wanted = {path for shard in shards for path in (shard.path, shard.clips, shard.prints, shard.state)}
    beside = (f"{CLIPS}/*.jsonl", f"{PRINTS}/*.npz", f"{STATE}/*-of-*.json")
    for pattern in ("*.array_record-*", *beside):
        yield from (path for path in sorted(out.glob(pattern)) if path not in wanted)
    for folder in (out, out / CLIPS, out / PRINTS, out / STATE):
        yield from sorted(folder.glob(".*.partial"))


def _checked(
    item: Item, files: Files, report: Report, seen: set[str], used: set[str], known: set[str]
) -> dict[str, Any] | None:
    """A clip as the plan holds it; None, and a line in the report, where it cannot be used."""
    if item.id in seen:
        report.add("duplicate id", item.id)
        return None
    seen.add(item.id)
    if leaving := [name for name in item.audio if outside(name)]:
        report.add("path leaves the folder", item.id, leaving[0])
        return None
    place = next(filter(None, map(files.find, item.audio)), None)
    if place is None:
        report.add("missing audio", item.id, item.audio[0])
        return None
    used.add(place)
    size, changed = files.stamp(place)
    if not size:
        report.add("zero-length audio", place, "0 bytes")
        return None
    told = item.told()
    if known and (unknown := [label for label in told.get("labels", ()) if label not in known]):
        report.add("label outside the ontology", item.id, "; ".join(unknown))
        told["labels"] = [label for label in told["labels"] if label in known]
        if not told["labels"]:
            return None
    return {**told, "audio": place, "stamp": [size, changed]}


def _share_out(offsets: list[int], hashes: list[int], count: int) -> list[list[int]]:
    shards = defaultdict(list)
    for offset, hashed in zip(offsets, hashes):
        shards[hashed % count].append(offset)
    return [shards[index] for index in range(count)]


def _samples(shard: Shard, clip: dict[str, Any]) -> tuple[np.ndarray, int]:
    """int16 samples of the first channel, bit for bit where the file has 16 bits."""
    with opened(shard.root, clip["audio"]) as path:
        samples, rate = load_audio(path, max_seconds=shard.max_seconds)
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2"), rate


def _fields(clip: dict[str, Any], samples: np.ndarray, rate: int) -> dict[str, Any]:
    """A clip as `builder.features` has it."""
    own = ("id", "labels", "captions", "source")
    rest = {name: value for name, value in clip.items() if name not in (*own, "audio", "stamp", "split")}
    return {
        "audio": samples.tobytes(),
        "rate": rate,
        "id": clip["id"],
        "labels": clip.get("labels", []),
        "captions": clip.get("captions", []),
        "source": clip.get("source", ""),
        "meta": json.dumps(rest, ensure_ascii=False),
    }
