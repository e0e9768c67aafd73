"""A benchmark run on a model: questions, answers and scores in a folder, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from alm_jax.core.errors import DataError, UsageError
from alm_jax.core.files import remove_partials, write_text
from alm_jax.data.endpoint import Endpoint
from alm_jax.data.rows import AudioRow, read_rows
from alm_jax.data.tasks.registry import write_rows
from alm_jax.eval.benchmarks import BENCHMARKS, Benchmark
from alm_jax.eval.corrupt import Corruption
from alm_jax.eval.data import Collection, read_collection
from alm_jax.eval.metrics.text import text_encoder
from alm_jax.eval.protocols.base import QUESTION, Answer, Asking, How, Scores, Scoring
from alm_jax.infer.batch import answer_file, embed_file
from alm_jax.infer.clap import LoadedClap
from alm_jax.infer.fluency import load_error_detector
from alm_jax.infer.loaded import LoadedModel
from alm_jax.infer.sampling import Sampling
from alm_jax.infer.sentences import MINILM
from alm_jax.infer.tagging import TagScorer

ROWS, PREDICTIONS, SCORES, METRICS = "rows.jsonl", "predictions.jsonl", "scores.jsonl", "metrics.json"
ALIGNER = "aligner"
"""As an encoder: the text encoder of the model's own aligner, by which APT scores tags."""
CLIPS = "clips"
"""Folder of clips that a benchmark composes."""
EMBED: How = "embed"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How benchmarks are run.

    Attributes:
        how: None takes each benchmark's usual way.
        prompt: whose (`ltu`, `apt`, `mats`), or a question; empty: each benchmark's first.
        split: empty takes each benchmark's own. limit: of rows, the first ones.
        seed: of what is drawn. trials: so many answers to each question, each scored, with the seeds that follow.
        batch_size, max_new_tokens (None: the benchmark's), segments: of answers. greedy: nothing is drawn or searched.
        corrupt: what is heard in the place of the clips.
        encoder, encoder_model: of sentences (`metrics.text.text_encoder`), or `ALIGNER`.
        fense: file of FENSE's detector of errors. spice: folder of its jars. judge: a model that judges answers.
        options: numbers that tasks leave open; those that a task does not know are refused.
    """

    how: How | None = None
    prompt: str = ""
    split: str = ""
    limit: int | None = None
    seed: int = 0
    trials: int = 1
    batch_size: int = 8
    max_new_tokens: int | None = None
    segments: int = 1
    greedy: bool = False
    corrupt: Corruption | None = None
    encoder: str = MINILM
    encoder_model: str = ""
    fense: str = ""
    spice: Path | None = None
    judge: Endpoint | None = None
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """A benchmark's outcome.

    Attributes:
        name: of the benchmark. folder: holds its files.
        facts: how it was run. rows: how many, of which `failed` could not be asked.
        scores: of the first trial, its metrics the means over trials. spread: their standard deviations, with several.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    rows: int
    failed: int
    scores: Scores
    spread: Mapping[str, float]


def evaluate(
    model: LoadedModel | LoadedClap,
    name: str,
    benchmark: Benchmark,
    source: str | Path | None,
    folder: Path,
    settings: Settings = Settings(),
    progress: Progress = lambda what, done, total: None,
) -> Evaluated:
    """Ask what is not asked yet, score all, and write `rows.jsonl` (questions), `predictions.jsonl` (answers),
    `scores.jsonl` (a line a row) and `metrics.json` to `folder`.

    Interrupted at any point and called again it ends with the same files.

    Args:
        source: see `eval.data.read_collection`; None where the benchmark needs none.
        progress: called with (what, done, all).

    Raises:
        DataError: the data lack what the benchmark needs. UsageError: settings that do not fit the benchmark or the
            model, or `folder` holds other answers. As `infer.batch.answer_file` and the metrics.
    """
    for place in (folder, folder / CLIPS):
        remove_partials(place)
    how = settings.how or usual_how(benchmark, model)
    _check(name, benchmark, how, model, settings)
    scoring = _scoring(model, how, folder, settings, progress)
    benchmark.task.check(scoring)
    collection = _collection(name, benchmark, source, settings)
    asking = _asking(name, benchmark, collection, folder, settings)
    try:
        write_rows(folder / ROWS, islice(_rows(benchmark, collection, asking), settings.limit))
        rows = read_rows(folder / ROWS, need_output=False)
    except DataError as error:
        raise DataError(f"{name} needs clips with {benchmark.task.needs}: {error}") from None
    scoring = replace(scoring, classes=collection.classes)
    trials, failed = [], 0
    for trial in range(settings.trials):
        out = folder / (PREDICTIONS if not trial else f"predictions-{trial + 1}.jsonl")
        choices = benchmark.task.choices(asking) if how == "choices" else None
        failed += _answer(model, benchmark, rows, out, how, choices, settings, trial, progress)
        trials.append(benchmark.task.score(list(_answers(out, how)), scoring))
    scores, spread = _over_trials(trials)
    facts = {
        "benchmark": name,
        "dataset": benchmark.dataset,
        "split": settings.split or benchmark.split,
        "how": how,
        "prompt": asking.prompt,
        "encoder": settings.encoder,
        "corrupt": None if settings.corrupt is None else str(settings.corrupt),
        "seed": settings.seed,
        "trials": settings.trials,
        **asking.options,
    }
    found = Evaluated(name, folder, facts, len(rows), failed, scores, spread)
    _write(found)
    return found


def usual_how(benchmark: Benchmark, model: LoadedModel | LoadedClap) -> How:
    """How a benchmark gets answers of a model unless it is told: a CLAP by itself embeds, and says nothing."""
    hows = benchmark.task.hows
    return EMBED if isinstance(model, LoadedClap) and EMBED in hows else hows[0]


def _check(name: str, benchmark: Benchmark, how: How, model: LoadedModel | LoadedClap, settings: Settings) -> None:
    if how not in benchmark.task.hows:
        raise UsageError(f"{name} gets answers by {' or '.join(benchmark.task.hows)}, not by {how}")
    if isinstance(model, LoadedClap) and how != EMBED:
        raise UsageError(f"{name} gets answers by {how}, and a CLAP by itself only embeds: give a model that answers")
    if unknown := sorted(set(settings.options) - set(benchmark.task.options)):
        known = ", ".join(benchmark.task.options) or "none"
        raise UsageError(f"{name} has no option {', '.join(unknown)}; it has {known}")
    if settings.trials > 1 and (how != "generate" or settings.greedy):
        raise UsageError("trials differ by what is drawn, and nothing is: leave --trials out")


def _collection(name: str, benchmark: Benchmark, source: str | Path | None, settings: Settings) -> Collection:
    if not benchmark.dataset:
        return Collection()
    if source is None:
        raise UsageError(f"{name} needs data: give --data with {benchmark.task.needs}")
    dataset = "" if benchmark.dataset == "any" else benchmark.dataset
    return read_collection(source, dataset, settings.split or benchmark.split)


def _prompt(name: str, benchmark: Benchmark, wanted: str) -> str:
    """A system's prompt, the benchmark's first where it has none of that system; or the one that is written out."""
    usual = next(iter(benchmark.prompts.values()))
    if not wanted or any(wanted in each.prompts for each in BENCHMARKS.values()):
        return benchmark.prompts.get(wanted, usual)
    if QUESTION in usual and QUESTION not in wanted:
        raise UsageError(f"--prompt {wanted!r}: {name} asks questions of the data: write {QUESTION} where they stand")
    return wanted


def _asking(name: str, benchmark: Benchmark, collection: Collection, folder: Path, settings: Settings) -> Asking:
    return Asking(
        prompt=_prompt(name, benchmark, settings.prompt),
        classes=collection.classes,
        folder=folder / CLIPS,
        about=collection.about,
        seed=settings.seed,
        options={**benchmark.task.options, **benchmark.options, **settings.options},
    )


def _rows(benchmark: Benchmark, collection: Collection, asking: Asking) -> Iterator[AudioRow]:
    if collection.rows is None:
        yield from benchmark.task.rows(collection.clips, asking)
        return
    for row in collection.rows.rows:
        clips = tuple(str(collection.rows.clip_path(clip)) for clip in row.clips)
        yield replace(row, audio_id=clips if len(clips) > 1 else "".join(clips))


def _scoring(
    model: LoadedModel | LoadedClap, how: How, folder: Path, settings: Settings, progress: Progress
) -> Scoring:
    """What answers are scored with, but for the classes, which come with the data."""
    return Scoring(
        how=how,
        classes=(),
        encoder=cache(lambda: text_encoder(settings.encoder, settings.encoder_model)),
        model=model,
        folder=folder,
        tag_scorer=_tag_scorer(model) if settings.encoder == ALIGNER else None,
        errors=cache(lambda: load_error_detector(settings.fense)) if settings.fense else None,
        spice=settings.spice,
        judge=settings.judge,
        progress=lambda done, total: progress("judging", done, total),
    )


def _answer(model, benchmark, rows, out, how, choices, settings, trial, progress) -> int:
    """Write the answers of one trial; how many rows failed."""
    what = "asking" if settings.trials == 1 else f"asking, trial {trial + 1} of {settings.trials}"
    common = {
        "batch_size": settings.batch_size,
        "hear": settings.corrupt,
        "progress": lambda done, total: progress(what, done, total),
    }
    if how == EMBED:
        return embed_file(model, rows, out, **common).failed
    return answer_file(
        model,
        rows,
        out,
        max_new_tokens=settings.max_new_tokens or benchmark.max_new_tokens,
        sampling=Sampling() if settings.greedy else None,
        seed=settings.seed + trial,
        segments=settings.segments,
        choices=choices,
        **common,
    ).failed


def _answers(path: Path, how: How) -> Iterator[Answer]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            told = json.loads(line)
            said, scores = told.pop("prediction", ""), told.pop("scores", {})
            failed = told.pop("error", None) is not None
            clips = told.pop("audio_id")
            row = AudioRow(**told, audio_id=tuple(clips) if isinstance(clips, list) else clips)
            if how == EMBED:
                yield Answer(row, vector=None if failed else np.array(said, np.float32), failed=failed)
            else:
                yield Answer(row, said, scores, failed=failed)


def _tag_scorer(model: LoadedModel):
    return cache(lambda classes: TagScorer(model.aligner, model.aligner_tokenizer, classes))


def _over_trials(trials: list[Scores]) -> tuple[Scores, dict[str, float]]:
    first = trials[0]
    if len(trials) == 1:
        return first, {}
    values = {name: [each.metrics[name] for each in trials] for name in first.metrics}
    means = {name: fmean(given) for name, given in values.items()}
    return replace(first, metrics=means), {name: float(np.std(given, ddof=1)) for name, given in values.items()}


def _write(found: Evaluated) -> None:
    scores = found.scores
    lines = [json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in scores.rows]
    write_text(found.folder / SCORES, "".join(lines))
    told: dict[str, Any] = {**found.facts, "rows": found.rows, "failed": found.failed, "metrics": scores.metrics}
    if found.spread:
        told["standard_deviation"] = dict(found.spread)
    told |= {"per_class": scores.per_class, "notes": list(scores.notes)}
    if scores.confusion is not None:
        told["confusion"] = {"classes": list(scores.classes), "counts": scores.confusion.tolist()}
    if scores.calibration is not None:
        bins = scores.calibration
        told["calibration"] = {"confidence": bins.confidence, "accuracy": bins.accuracy, "counts": bins.counts}
    write_text(found.folder / METRICS, json.dumps(_plain(told), indent=1, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    """As JSON has it: NaN is null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
