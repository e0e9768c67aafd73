"""Frozen encoder features, computed once for all clips of a stage (or texts in their place) and kept between runs;
`data.features` reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from alm_jax.core import tree
from alm_jax.core.processes import check_shared
from alm_jax.core.sequence import Layout
from alm_jax.core.tree import Arrays
from alm_jax.data.captions import Captions
from alm_jax.data.features import FeatureStore, FeatureWriter, audio_sha256, feature_key, text_sha256
from alm_jax.data.layout import row_lengths
from alm_jax.data.pipeline import DataPipeline, FrontEnd
from alm_jax.data.plan import DataSpec, Plan
from alm_jax.data.plan import Source as RowSource
from alm_jax.data.rows import AudioRow, RowSet
from alm_jax.data.templates import Template
from alm_jax.data.tokenizer import Tokenizer
from alm_jax.models.alm import in_dtype
from alm_jax.train.batches import data_process, meet, place
from alm_jax.train.metrics import Progress
from alm_jax.train.weights import StageModel

DTYPE = "float16"
_PART = 16  # batches in one part file: what a killed run computes again at most


@dataclass(frozen=True)
class Hearing:
    """How rows are read while features are computed: as in training.

    Attributes:
        audio: what clips, or texts, go through. template, layout, tokenizer: of the experiment.
        batch_size, workers, max_bad_share: of the loader.
    """

    audio: FrontEnd | Captions
    template: Template
    layout: Layout
    tokenizer: Tokenizer
    batch_size: int
    workers: int
    max_bad_share: float


def compute_features(
    clips: Iterable[Path] | Iterable[str],
    model: StageModel,
    encoder: Arrays,
    hearing: Hearing,
    cache: Path,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> FeatureStore | None:
    """The store of the features [K, T, D] of all clips (files, or texts), computed where it is not in `cache` yet.

    Clips of equal bytes are encoded once. A clip that cannot be read is named in the log and left out, so that its rows
    count as bad in training. A killed run goes on from the last part that was written.

    Args:
        encoder: `{path: array}` of the model's `encoder.*`, where the mesh wants them.
        should_stop: asked between batches; where it says yes the result is None.
    """
    weights = _fingerprint(model, encoder)
    taps = model.config.taps or ()
    keys = {
        path: feature_key(digest, frontend=hearing.audio, weights=weights, taps=taps, dtype=DTYPE)
        for path, digest in _digests(sorted(set(clips)), progress).items()
    }
    folder = cache / "features" / weights[:16]
    path = folder / f"{_name(f'{path} {key}' for path, key in keys.items())}.array_record"
    if jax.process_count() > 1:
        check_shared(folder)
    found = path.is_file()
    meet("features looked for")
    if not found:
        stores = [FeatureStore.open(store) for store in sorted(folder.glob("*.array_record"))]
        known = {key for store in stores for key in keys.values() if key in store}
        unique = {key: clip for clip, key in keys.items() if key not in known}
        parts = _write_parts(unique, model, encoder, hearing, folder, progress, should_stop)
        if parts is None:
            return None
        if jax.process_index() == 0:
            _merge([*stores, *map(FeatureStore.open, parts)], keys, path, model.config.aligner.feature_shape)
            for part in parts:
                part.unlink()
        meet("features merged")
    return FeatureStore.open(path)


def _name(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _digests(clips: Sequence[Path | str], progress: Progress) -> dict[Path | str, str]:
    """sha256 of each clip that can be read."""

    def digest(clip: Path | str) -> str | Exception:
        try:
            return text_sha256(clip) if isinstance(clip, str) else audio_sha256(clip)
        except Exception as error:  # a thread's error is reported where it is collected
            return error

    with ThreadPoolExecutor() as pool:
        found = dict(zip(clips, pool.map(digest, clips)))
    for result in found.values():
        if isinstance(result, Exception):
            progress.say(f"no features: {result}")
    return {path: result for path, result in found.items() if isinstance(result, str)}


def _fingerprint(model: StageModel, encoder: Arrays) -> str:
    """Hash of all that features depend on beside the clip, its front end and the taps."""
    config = model.config
    digest = hashlib.sha256(repr((config.encoder, config.pool, config.taps, model.precision)).encode())
    for path in sorted(encoder):
        leaf = encoder[path]
        whole = leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(np.asarray(whole)).tobytes())
    return digest.hexdigest()


def _write_parts(unique, model, encoder, hearing, folder, progress, should_stop) -> list[Path] | None:
    """Encode clips `{key: path}` part by part; the parts' files, or None if stopped."""
    if not unique:
        return []
    folder = folder / f"{_name(unique)}.parts"
    pipeline = _clip_batches(list(unique.values()), model, hearing)
    unique, steps = list(unique), pipeline.plan.steps_per_epoch
    parts = {start: folder / f"{start // _PART:06d}.array_record" for start in range(0, steps, _PART)}
    encode = _encoder(model)
    progress.start("features", len(unique))
    for start, part in parts.items():
        if part.is_file():
            continue
        found: dict[str, np.ndarray] = {}
        for loaded in pipeline.iterate(start, min(_PART, steps - start)):
            if should_stop():
                return None
            with jax.set_mesh(model.mesh):
                values, heard = encode(encoder, place((loaded.batch.audio, loaded.batch.loss_weight), model.mesh))
            first = loaded.step * hearing.batch_size
            batch = zip(unique[first : first + hearing.batch_size], np.asarray(values), np.asarray(heard))
            found |= {key: features for key, features, ok in batch if ok}
            progress.update(min(len(unique), first + hearing.batch_size))
        if jax.process_index() == 0:
            with FeatureWriter(part, model.config.aligner.feature_shape, DTYPE) as writer:
                for key, features in found.items():
                    writer.add(key, features)
        meet(f"features {start}")
    return list(parts.values())


def _encoder(model: StageModel) -> Callable[[Arrays, tuple[Any, Any]], tuple[jax.Array, jax.Array]]:
    """Jitted (arrays, (audio [B, 1, ...], loss_weight [B, L])) -> (features [B, K, T, D], which rows were heard)."""
    like = model.like.encoder
    config, dtype = model.config, jnp.dtype(model.precision.compute)
    everywhere = NamedSharding(model.mesh, PartitionSpec())

    def encode(arrays: Arrays, batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        audio, loss_weight = batch
        encoder = tree.unflatten(like, {path.removeprefix("encoder."): leaf for path, leaf in arrays.items()})
        features = encoder(in_dtype(audio[:, 0], dtype), config.taps, config.pool)
        return jnp.moveaxis(features.values, 0, 1).astype(DTYPE), (loss_weight > 0).any(-1)

    return jax.jit(encode, out_shardings=(everywhere, everywhere))


def _merge(stores: Sequence[FeatureStore], keys: dict[Path, str], path: Path, shape: Sequence[int]) -> None:
    """One store of the wanted features of all `stores`."""
    with FeatureWriter(path, shape, DTYPE) as writer:
        for key in dict.fromkeys(keys.values()):
            store = next((store for store in stores if key in store), None)
            if store is not None:
                writer.add(key, store[key])
        for clip, key in keys.items():
            if key in writer:
                writer.link(clip, key)


def _clip_batches(clips: Sequence[Path | str], model: StageModel, hearing: Hearing) -> DataPipeline:
    """A pipeline whose rows are the clips, in order: what training would hear, loaded the same way."""
    # A row that cannot be heard is left without loss: so every row needs some.
    texts = isinstance(hearing.audio, Captions)
    clip_of = lambda clip: {"caption": clip} if texts else {"audio_id": str(clip.resolve())}
    rows = [AudioRow(instruction="-", output="-", **clip_of(clip)) for clip in clips]
    config = model.config
    index, count = data_process(model.mesh, hearing.batch_size)
    length = row_lengths(
        [hearing.template.parts(rows[0])], hearing.layout, hearing.tokenizer, audio_tokens=config.audio_tokens
    )
    spec = DataSpec(
        sources=(RowSource("clips"),),
        batch_size=hearing.batch_size,
        buckets=(int(length[0]),),
        shuffle=False,
        last="pad",
        max_bad_share=hearing.max_bad_share,
        workers=hearing.workers,
    )
    return DataPipeline(
        plan=Plan([np.full(len(rows), length[0], np.int32)], spec),
        rowsets=(RowSet(rows, Path("/")),),
        template=hearing.template,
        layout=hearing.layout,
        tokenizer=hearing.tokenizer,
        audio=hearing.audio,
        audio_tokens=config.audio_tokens,
        hears="text" if texts else "audio",
        process_index=index,
        process_count=count,
    )
