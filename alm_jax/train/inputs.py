"""What a run reads: its rows, composed first where a config asks for scenes, and its tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
from jax.sharding import Mesh

from alm_jax.convert import hub
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import ConfigError
from alm_jax.data.composed import Scenes
from alm_jax.data.pipeline import DataPipeline, make_pipeline
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.rows import read_rows
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from alm_jax.models.alm import AlmConfig
from alm_jax.train.batches import data_process, meet
from alm_jax.train.config import Experiment
from alm_jax.train.metrics import Progress

_TOKENIZER_ROWS = 50_000  # rows that a tokenizer is trained on at most


def located(spec: DataSpec, progress: Progress) -> DataSpec:
    """The spec with a file of rows for every source; scenes and tasks are written where the cache lacks them."""
    return replace(spec, sources=tuple(_located(source, progress) for source in spec.sources))


def _located(source: Source | Scenes | Tasks, progress: Progress) -> Source:
    if isinstance(source, Source):
        return source
    shown = None

    def show(done: int, total: int) -> None:
        nonlocal shown
        if total != shown:
            progress.start("rows", total)
            shown = total
        progress.update(done)

    rows = source.write(cache_dir(), workers=os.cpu_count() or 1, progress=show)
    return Source(str(rows), source.repeat)


def pipeline(
    spec: DataSpec, experiment: Experiment, config: AlmConfig, tokenizer: Tokenizer, mesh: Mesh, progress: Progress
) -> DataPipeline:
    """The pipeline of a spec for this process, hearing clips through the model's front end."""
    index, count = data_process(mesh, spec.batch_size)
    return make_pipeline(
        located(spec, progress),
        template=experiment.template,
        layout=experiment.layout,
        tokenizer=tokenizer,
        audio=config.frontend,
        audio_tokens=config.audio_tokens,
        cache_dir=cache_dir() / "lengths",
        process_index=index,
        process_count=count,
    )


def prepare_tokenizer(experiment: Experiment, folder: Path, progress: Progress) -> Tokenizer:
    """The run's tokenizer, kept in `folder` from the first time on.

    Raises:
        ConfigError: it has more ids than the decoder.
    """
    if jax.process_index() == 0 and not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _make_tokenizer(experiment, progress).save(partial)
        partial.replace(folder)
    meet("tokenizer")
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > experiment.model.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model.decoder.vocab_size is "
            f"{experiment.model.decoder.vocab_size}: choose the decoder's own tokenizer, or a larger vocabulary"
        )
    return tokenizer


def _make_tokenizer(experiment: Experiment, progress: Progress) -> Tokenizer:
    if isinstance(experiment.tokenizer, str):
        return load_tokenizer(hub.resolve(experiment.tokenizer).path)
    return train_tokenizer(islice(_texts(experiment, progress), _TOKENIZER_ROWS), experiment.tokenizer.vocab_size)


def _texts(experiment: Experiment, progress: Progress) -> Iterator[str]:
    sources = dict.fromkeys(s for stage in experiment.stages for s in located(stage.data, progress).sources)
    for source in sources:
        for row in read_rows(source.rows, max_bad_share=1.0).rows:
            yield experiment.template.prompt(row.instruction, row.input) + row.output
