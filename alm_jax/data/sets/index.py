"""Prepared sets read back: which clips there are, from the indexes beside the shards; audio stays where it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alm_jax.audio.records import record_path
from alm_jax.audio.remote import FETCHED_FROM, fetch
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import DataError
from alm_jax.core.files import write_text

CLIPS = "clips"
"""Folder of a prepared set: an index of the clips in each shard, without their audio."""
PRINTS = "fingerprints"
"""Folder of a prepared set: the fingerprints of the clips in each shard."""


def prepared_folder(source: str | Path) -> str | None:
    """The folder of a prepared set: `data/esc50`, the version in it, or either at a URL that fsspec opens; None where
    this is no such folder."""
    import fsspec

    source = str(source)
    if "://" not in source:
        source = str(Path(source).expanduser())
    fs, path = fsspec.url_to_fs(source)
    for folder in ("", *(f"/{Path(each).name}" for each in sorted(fs.glob(f"{path}/*.*.*"), reverse=True))):
        if fs.isdir(f"{path}{folder}/{CLIPS}") and fs.exists(f"{path}{folder}/dataset_info.json"):
            return f"{source.rstrip('/')}{folder}"
    return None


def prepared_clips(source: str | Path, split: str = "all") -> Iterator[tuple[Path, dict[str, Any]]]:
    """The clips of a prepared set: the path by which each is heard (`audio.io.load_audio`), and what is known of it:
    `id`, `split`, `seconds`, and any of `labels`, `captions`, `events` (each label, onset, offset), `questions`,
    `source`, `meta`.

    Of a set at a URL the indexes are fetched to the cache now, and a clip when it is first heard.

    Args:
        source: as of `prepared_folder`. split: one, several joined by `+`, or `all`.

    Raises:
        DataError: no prepared set, no such split, or a shard is gone.
    """
    folder = prepared_folder(source)
    if folder is None:
        raise DataError(f"{source}: no prepared set; `alm data prepare NAME --src DIR --out DIR` writes one")
    local = _mirrored(folder) if "://" in folder else Path(folder)
    indexes: dict[str, list[Path]] = {}
    for index in sorted((local / CLIPS).glob("*-of-*.jsonl")):
        indexes.setdefault(index.stem.rsplit("-", 3)[0], []).append(index)
    wanted = list(indexes) if split == "all" else split.split("+")
    if unknown := [name for name in wanted if name not in indexes]:
        raise DataError(f"{source}: no split {', '.join(unknown)}; it has {', '.join(indexes)}, and all")
    name = json.loads((local / "dataset_info.json").read_text(encoding="utf-8"))["name"]
    for each in wanted:
        for index in indexes[each]:
            shard = local / f"{name}-{each}.array_record-{index.stem.removeprefix(f'{each}-')}"
            if "://" not in folder and not shard.is_file():
                raise DataError(f"{shard} is gone: prepare the set again, what is whole is kept")
            with index.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines):
                    told = json.loads(line)
                    yield record_path(shard, number, told["id"]), told


def shard_stem(shard: str | Path) -> str:
    """What files beside a shard are named: `fold1-00000-of-00003`."""
    return Path(shard).name.partition("-")[2].replace(".array_record", "", 1)


def beside_shard(shard: str | Path) -> tuple[Path, Path]:
    """The index of a shard's clips, and their fingerprints, fetched if the set lies at a URL.

    Raises:
        AudioError: it cannot be fetched.
    """
    folder, name = Path(shard).parent, shard_stem(shard)
    paths = folder / CLIPS / f"{name}.jsonl", folder / PRINTS / f"{name}.npz"
    for path in paths:
        fetch(path)
    return paths


def _mirrored(url: str) -> Path:
    """A folder of the cache that stands for one at a URL: its small files, and where the shards are to be had."""
    import fsspec

    fs, path = fsspec.url_to_fs(url)
    stamp = [(Path(each["name"]).name, each["size"]) for each in sorted(fs.ls(path, detail=True), key=str)]
    folder = cache_dir() / "sets" / hashlib.sha256(repr((url, stamp)).encode()).hexdigest()[:16]
    for held in (CLIPS, PRINTS):
        (folder / held).mkdir(parents=True, exist_ok=True)
    write_text(folder / FETCHED_FROM, url)
    for each in (f"{path}/dataset_info.json", *fs.glob(f"{path}/{CLIPS}/*.jsonl")):
        fetch(folder / str(each)[len(path) :].lstrip("/"))
    return folder
