"""What a run reads: its rows, composed first where a config asks for scenes, and its tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from alm_jax.convert import hub
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import ConfigError
from alm_jax.core.files import write_text
from alm_jax.data import leaks
from alm_jax.data.captions import Captions
from alm_jax.data.composed import Scenes
from alm_jax.data.pipeline import DataPipeline, FrontEnd, make_pipeline
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.rows import Hears, RowSet, read_rows
from alm_jax.data.tasks.source import Tasks
from alm_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from alm_jax.data.waveforms import Waveforms
from alm_jax.models.alm import AlmConfig
from alm_jax.train.batches import data_process, meet
from alm_jax.train.config import Experiment, Stage, TrainTokenizer
from alm_jax.train.metrics import Progress

_TOKENIZER_ROWS = 50_000  # rows that a tokenizer is trained on at most


TOKENIZER, ALIGNER_TOKENIZER, ENCODER_TOKENIZER = "tokenizer", "aligner_tokenizer", "encoder_tokenizer"
"""Folders of a run."""


@dataclass(frozen=True)
class Tokenizers:
    """A run's tokenizers: the decoder's, and those of an aligner and of an encoder that read text."""

    decoder: Tokenizer
    aligner: Tokenizer | None = None
    encoder: Tokenizer | None = None


def located(spec: DataSpec, progress: Progress) -> DataSpec:
    """The spec with a file of rows for every source; scenes and tasks are written where the cache lacks them."""
    return replace(spec, sources=tuple(_located(source, progress) for source in spec.sources))


def _located(source: Source | Scenes | Tasks, progress: Progress) -> Source:
    if isinstance(source, Source):
        return source
    rows = source.write(cache_dir(), workers=os.cpu_count() or 1, progress=_counting("rows", progress))
    return Source(str(rows), source.repeat)


def _counting(what: str, progress: Progress) -> Callable[[int, int], None]:
    """Shows (done, all)."""
    shown = None

    def show(done: int, total: int) -> None:
        nonlocal shown
        if total != shown:
            progress.start(what, total)
            shown = total
        progress.update(done)

    return show


def guard(experiment: Experiment, stage: str, run: Path, progress: Progress) -> Callable[[RowSet], RowSet]:
    """What leaves out a stage's rows about clips that are evaluated on (`Experiment.held_out`), and says so."""
    found: list[leaks.Leak] = []
    told = run / f"leaks-{stage}.jsonl"
    held_out = None if experiment.held_out is None else list(map(leaks.Clips.of, experiment.held_out))

    def leave_out(rows: RowSet) -> RowSet:
        counting = _counting("clips compared", progress)
        kept, new, held = leaks.leave_out(rows, held_out, workers=os.cpu_count() or 1, progress=counting)
        if not held:
            return rows
        found.extend(new)
        if jax.process_index() == 0:
            write_text(told, leaks.report(found))
        heard = "; ".join(
            f"{name}: " + ", ".join(f"{count} by {how}" for how, count in by.items() if count)
            for name, by in leaks.counts(new, held).items()
            if any(by.values())
        )
        progress.say(
            f"stage {stage}: {len(rows) - len(kept)} of {len(rows)} rows are left out, about clips that are held out "
            f"to test on ({heard}); {told} lists them, held_out=() trains on them"
            if new
            else f"stage {stage}: none of {len(rows)} rows is about a clip of {', '.join(map(str, held))}"
        )
        return kept

    return leave_out


def pipeline(
    spec: DataSpec,
    experiment: Experiment,
    stage: Stage,
    config: AlmConfig,
    tokenizers: Tokenizers,
    mesh: Mesh,
    progress: Progress,
    choose: Callable[[RowSet], RowSet] = lambda rows: rows,
) -> DataPipeline:
    """The pipeline of a spec of a stage, of the rows that are chosen, for this process."""
    layout, audio = experiment.stage_layout(stage), front_end(config, tokenizers, stage.hears)
    index, count = data_process(mesh, spec.batch_size)
    return make_pipeline(
        located(spec, progress),
        template=experiment.template,
        layout=layout,
        tokenizer=tokenizers.decoder,
        audio=Waveforms(audio) if stage.front_end == "device" else audio,
        audio_tokens=config.audio_tokens,
        hears=stage.hears,
        aligner_tokenizer=tokenizers.aligner if layout.aligner_text_tokens else None,
        cache_dir=cache_dir() / "lengths",
        choose=choose,
        process_index=index,
        process_count=count,
    )


def front_end(config: AlmConfig, tokenizers: Tokenizers, hears: Hears) -> FrontEnd | Captions:
    """What clips go through, or the texts in their place."""
    if hears == "audio":
        return config.frontend
    return Captions(tokenizers.encoder, config.encoder.text_tokens, config.encoder.text_gap)


def prepare_tokenizers(experiment: Experiment, run: Path, progress: Progress) -> Tokenizers:
    """The run's tokenizers, kept in folders of `run` from the first time on.

    Raises:
        ConfigError: one has more ids than the part that reads them.
    """
    decoder = _prepared(experiment, experiment.tokenizer, run / TOKENIZER, progress)
    _check_ids(decoder, "tokenizer", "decoder", experiment.model.decoder)
    readers = {}
    for part, name in (("aligner", ALIGNER_TOKENIZER), ("encoder", ENCODER_TOKENIZER)):
        if (made_from := getattr(experiment, name)) is not None:
            readers[part] = _prepared(experiment, made_from, run / name, progress)
            _check_ids(readers[part], name, part, getattr(experiment.model, part))
    return Tokenizers(decoder, **readers)


def _prepared(experiment: Experiment, made_from: str | TrainTokenizer, folder: Path, progress: Progress) -> Tokenizer:
    if jax.process_index() == 0 and not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _make_tokenizer(experiment, made_from, progress).save(partial)
        partial.replace(folder)
    meet(folder.name)
    return load_tokenizer(folder)


def _make_tokenizer(experiment: Experiment, made_from: str | TrainTokenizer, progress: Progress) -> Tokenizer:
    if isinstance(made_from, str):
        return load_tokenizer(hub.resolve(made_from).path)
    return train_tokenizer(islice(_texts(experiment, progress), _TOKENIZER_ROWS), made_from.vocab_size)


def _check_ids(tokenizer: Tokenizer, name: str, part: str, config: Any) -> None:
    rows = getattr(config, "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise ConfigError(
            f"the {name} has {tokenizer.vocab_size} ids, model.{part}.vocab_size is {rows}: choose the {part}'s own "
            "tokenizer, or a larger vocabulary"
        )


def _texts(experiment: Experiment, progress: Progress) -> Iterator[str]:
    sources = dict.fromkeys(s for stage in experiment.stages for s in located(stage.data, progress).sources)
    for source in sources:
        for row in read_rows(source.rows, max_bad_share=1.0).rows:
            yield experiment.template.prompt(row.instruction, row.input) + row.output
            yield from row.captions
