"""The registry's sets as TFDS builders, and what TFDS needs to read what `prepare` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.audio.io import load_audio
from alm_jax.core.errors import DataError
from alm_jax.data.sets.base import DataSet, Report
from alm_jax.data.sets.files import Files, opened

VERSION = "1.0.0"


def features() -> Any:
    """The features of every set, as `tfds.features.FeaturesDict`: audio int16 [n] at `rate` Hz, `id`, `labels`,
    `captions`, `source`, and `meta`, JSON of the rest (events, questions, ...)."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    audio = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES)
    lists = {name: tfds.features.Sequence(text()) for name in ("labels", "captions")}
    return tfds.features.FeaturesDict(
        {"audio": audio, "rate": np.int32, "id": text(), **lists, "source": text(), "meta": text()}
    )


def builder_class(dataset: DataSet) -> type:
    """A set as a `tfds.core.GeneratorBasedBuilder` that reads its files from `manual_dir`.

    `alm data prepare` writes the same examples in its own shards, which can be interrupted and shared out.
    """
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder):
        """Reads one set of the registry."""

        name = dataset.name
        VERSION = tfds.core.Version(VERSION)
        url_infos = None  # nothing is downloaded; finding checksums needs a package that TFDS does not ask for
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"Have the files from {dataset.url}."

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features(), **_told(dataset))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            files = Files(dl_manager.manual_dir, Report())
            dataset.check(files)
            items = dataset.read(files, Report())
            found = {item.split for item in items if any(map(files.find, item.audio))}
            return {split: self._generate_examples(files, split) for split in dataset.splits if split in found}

        def _generate_examples(self, files: Files, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for item in dataset.read(files, Report()):
                place = next(filter(None, map(files.find, item.audio)), None)
                if item.split != split or place is None:
                    continue
                with opened(files.root, place) as path:
                    samples, rate = load_audio(path)
                told = item.told()
                own = {name: told.pop(name, default) for name, default in _OWN.items()}
                told.pop("split")
                audio = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
                yield item.id, own | {"audio": audio, "rate": rate, "meta": json.dumps(told, ensure_ascii=False)}

    return Builder


_OWN = {"id": "", "labels": [], "captions": [], "source": ""}


def write_metadata(dataset: DataSet, out: Path, splits: dict[str, list[tuple[int, int]]]) -> None:
    """Write what `tfds.builder_from_directory` reads.

    Args:
        splits: (clips, bytes) of each shard of each split.

    Raises:
        DataError: nothing to describe.
    """
    import tensorflow_datasets as tfds

    if not splits:
        raise DataError(f"{out}: no clip of {dataset.name} could be read; report.jsonl says why")
    infos = [
        tfds.core.SplitInfo(
            name=name, shard_lengths=[clips for clips, _ in shards], num_bytes=sum(size for _, size in shards)
        )
        for name, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features=features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,
        **_told(dataset),
    )


def _told(dataset: DataSet) -> dict[str, str]:
    return {"description": dataset.title, "homepage": dataset.url, "license": dataset.licence}
