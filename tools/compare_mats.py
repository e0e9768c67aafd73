#!/usr/bin/env python
"""Pretrain a small CLAP, train MATS on text alone over it, and compare the ways over the gap between text and sound.

    python tools/compare_mats.py --out runs/mats_compared
    python tools/compare_mats.py --out runs/mats_compared --sounds my_clips    a collection of labelled recordings
    python tools/compare_mats.py --out runs/mats_compared --dry-run            what is trained, and leave

First `clap/whisper_minilm` pairs scenes with captions; then the variants of `mats/smollm2` are trained over it: on
captions with noise, without noise, and on sound. They are asked in these ways:

    neither        trained without noise, asked with the embedding of the sound as it is
    noise only     trained with noise, asked with the embedding as it is
    memory only    trained without noise; a sound is projected onto a bank of training captions (table 4)
    Santa          trained with noise, the embedding drawn towards the bank's nearest texts (MATS, section 3.4)
    audio          trained on sound (MATS-Audio)

and scored on

    mixtures       scenes composed anew from the recordings that the CLAP was trained on: mean score of the questions
    unseen         the same of recordings of packages that nothing was trained on
    recordings     each such recording by itself: which of all labels, by mean log-likelihood a token

Beside them stand the most frequent answer of training, chance, and the CLAP alone (zero-shot). Intervals are 95 %, of
the questions asked. OUT gets a folder a run, memory.safetensors, table.md, results.json and compare.png. Stopped by
Ctrl-C or a crash, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from comparison import cell, markdown, mean_of, plot, read_scored, seconds

from alm_jax.core.config import apply_overrides, load_config_file
from alm_jax.core.errors import AlmError
from alm_jax.core.files import write_text
from alm_jax.data.composed import Scenes
from alm_jax.data.manifest import choose_clips
from alm_jax.data.rows import AudioRow, RowSet, read_rows
from alm_jax.models.mats import ABLATIONS
from alm_jax.models.registry import named_config
from alm_jax.train.config import Experiment

CLAP, MATS = "clap/whisper_minilm", "mats/smollm2"
COLUMNS = ("mixtures", "unseen", "recordings")
QUESTION, ANSWER = "Which sounds occur in this clip?", "Labels: {}"  # as rows of scenes have them
_HELD_OUT = 1000  # added to the seeds of training's scenes


@dataclass(frozen=True)
class Way:
    """A way over the gap.

    Attributes:
        run: a variant of `MATS`. santa: overrides of its Santa; None: asked without a memory.
    """

    run: str
    santa: Mapping[str, Any] | None = None


def _santa(name: str) -> dict[str, Any]:
    prefix = "model.santa."
    return {k.removeprefix(prefix): v for k, v in ABLATIONS[name].items() if k.startswith(prefix)}


WAYS = {
    "neither": Way("mats_smollm2_no_noise"),
    "noise only": Way("mats_smollm2"),
    "memory only": Way("mats_smollm2_no_noise", _santa("memory_based")),
    "Santa": Way("mats_smollm2", {}),
    "audio": Way("mats_smollm2_audio"),
}


def with_sounds(value: Any, sounds: str) -> Any:
    """A config whose scenes are all composed from `sounds`."""
    if isinstance(value, Scenes):
        return replace(value, clips=sounds)
    if isinstance(value, tuple):
        return tuple(with_sounds(item, sounds) for item in value)
    if not is_dataclass(value):
        return value
    changed = {name: with_sounds(getattr(value, name), sounds) for name in value.__dataclass_fields__ if name in _HOLD}
    return replace(value, **changed) if changed else value


_HOLD = ("stages", "data", "validation", "sources", "clips")  # fields on the way to scenes


def experiments(out: Path, sounds: str) -> dict[str, Experiment]:
    """The CLAP and the variants over it, in the order in which they are trained."""
    clap = load_config_file(CLAP).get_config()
    file = load_config_file(MATS)
    found = {"clap": clap}
    for item in file.sweep():
        experiment = apply_overrides(file.get_config(), item, named_config)
        first = replace(experiment.weights[0], source=str(out / "clap"))
        found[experiment.name] = replace(experiment, weights=(first, *experiment.weights[1:]))
    return {name: with_sounds(experiment, sounds) for name, experiment in found.items()}


def train_all(out: Path, planned: Mapping[str, Experiment]) -> bool:
    """Train what is not yet; whether it was asked to stop."""
    from alm_jax.train.curriculum import train

    for n, (name, experiment) in enumerate(planned.items(), start=1):
        print(f"[{n}/{len(planned)}] {name}", flush=True)
        if train(experiment, out / name, resume=True).stopped:
            return True
    return False


def scenes_of(experiment: Experiment) -> Scenes:
    """What the last stage is trained on."""
    return next(source for source in experiment.stages[-1].data.sources if isinstance(source, Scenes))


@dataclass(frozen=True)
class Asked:
    """What everyone is asked: rows with answers of their own, and recordings with a closed set of answers."""

    scenes: Mapping[str, RowSet]
    recordings: Sequence[AudioRow]
    labels: tuple[str, ...]
    trained: Sequence[AudioRow]
    kinds: Sequence[str]


def questions(seen: Scenes, size: int) -> Asked:
    """At most `size` questions of a kind and column, and every unseen recording."""
    from alm_jax.core.cache import cache_dir

    def rows(split: str, seed: int) -> RowSet:
        return read_rows(replace(seen, n=size, seed=seed, split=split).write(cache_dir()))

    unseen, labels = choose_clips(seen.clips, "unseen")
    return Asked(
        scenes={
            "mixtures": rows("train", seen.seed + _HELD_OUT),
            "unseen": rows("unseen", seen.seed + 2 * _HELD_OUT),
        },
        recordings=[AudioRow(QUESTION, "", str(clip.path), output=ANSWER.format(clip.phrase)) for clip in unseen],
        labels=tuple(ANSWER.format(label) for label in labels),
        trained=list(read_rows(seen.write(cache_dir())).rows),
        kinds=seen.kinds,
    )


def score_way(model: Any, asked: Asked, size: int, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """`{"measures": {...}, "answers": {...}}` of a model."""
    from alm_jax.data.questions import score
    from alm_jax.eval.answers import answer_rows, encode_clips, features_of
    from alm_jax.eval.choices import accuracy, choose

    measures, told = {}, {}
    for name, rowset in asked.scenes.items():
        chosen = chosen_rows(rowset, asked.kinds, size)
        rows = [rowset[i] for i in chosen]
        answers = answer_rows(model, rows, features_of(model, rowset, chosen), max_new_tokens=24, progress=tell)
        scores = [float(score(row.task, text, {"meta": dict(row.meta)})) for row, text in zip(rows, answers)]
        measures[name] = mean_of(scores)
        told[name] = [
            {"kind": row.task, "question": row.instruction, "true": row.output, "answer": text, "score": value}
            for row, text, value in zip(rows, answers, scores)
        ]
    paths = [Path(row.audio_id) for row in asked.recordings]
    heard = encode_clips(model, paths)
    choices = [asked.labels] * len(paths)
    answers = choose(model, asked.recordings, [[heard[path]] for path in paths], choices, progress=tell)
    found = accuracy(asked.recordings, answers, choices)
    measures["recordings"] = {"right": found.right, "of": found.of}
    told["recordings"] = [{"true": row.output, "answer": text} for row, text in zip(asked.recordings, answers)]
    return {"measures": measures, "answers": told}


def chosen_rows(rows: RowSet, kinds: Sequence[str], size: int) -> list[int]:
    """The first rows of each kind, `size` in all, about evenly."""
    each = max(1, size // len(kinds))
    return [i for kind in kinds for i in [j for j in range(len(rows)) if rows[j].task == kind][:each]]


def guesses(asked: Asked, clap: Any, size: int) -> dict[str, dict[str, Any]]:
    """Measures of who does not listen, and of the CLAP alone."""
    from alm_jax.data.questions import majority_answers, score
    from alm_jax.eval.retrieval import class_embeddings

    usual = majority_answers([{"task": row.task, "output": row.output} for row in asked.trained])
    frequent = {}
    for name, rowset in asked.scenes.items():
        rows = [rowset[i] for i in chosen_rows(rowset, asked.kinds, size)]
        frequent[name] = mean_of([score(r.task, usual.get(r.task, ""), {"meta": dict(r.meta)}) for r in rows])
    names = [label.removeprefix(ANSWER.format("")) for label in asked.labels]
    audio = clap.embed_audio([row.audio_id for row in asked.recordings])
    best = (audio @ class_embeddings(clap, names).T).argmax(-1)
    right = sum(asked.labels[i] == row.output for i, row in zip(best, asked.recordings))
    return {
        "most frequent answer": frequent,
        "chance": {"recordings": {"share": 1 / len(names)}},
        "CLAP alone": {"recordings": {"right": int(right), "of": len(audio)}},
    }


def score_all(out: Path, asked: Asked, size: int) -> dict[str, Any]:
    """Ask in every way that was not scored before; results by way."""
    import alm_jax
    from alm_jax.core.display import progress
    from alm_jax.infer.memory import build_bank

    scored = out / "scored"
    scored.mkdir(exist_ok=True)
    bank, models = out / "memory.safetensors", {}
    load = lambda run: models.setdefault(run, alm_jax.load(out / run))
    for name, way in WAYS.items():
        path = scored / f"{name.replace(' ', '_')}.json"
        if read_scored(path, size) is not None:
            continue
        if way.santa is None:
            model = load(way.run)
        else:
            if not bank.is_file():
                captions = [caption for row in asked.trained for caption in row.captions]
                with progress("memory") as tell:
                    build_bank(load(way.run), captions, progress=tell).save(bank)
            model = alm_jax.load(out / way.run, memory=bank, santa=way.santa)
        began = time.monotonic()
        with progress(f"asking: {name}") as tell:
            results = score_way(model, asked, size, tell)
        results |= {"seconds": time.monotonic() - began, "questions": size}
        write_text(path, json.dumps(results, indent=1))
        told = ", ".join(f"{column} {cell(value)}" for column, value in results["measures"].items())
        print(f"{name}: {told}", flush=True)
    path = scored / "guesses.json"
    if not path.is_file():
        write_text(path, json.dumps(guesses(asked, load(next(iter(WAYS.values())).run), size), indent=1))
    results = {name: json.loads((scored / f"{name.replace(' ', '_')}.json").read_text()) for name in WAYS}
    return {"ways": results, "guesses": json.loads(path.read_text())}


def report(out: Path, results: Mapping[str, Any], planned: Mapping[str, Experiment]) -> str:
    """Write table.md, results.json and compare.png; the table."""
    measures = {name: found["measures"] for name, found in results["ways"].items()}
    spent = {name: sum(seconds(out / name).values()) / 60 for name in planned}
    rows = {}
    for name, values in (measures | results["guesses"]).items():
        minutes = f"{spent[WAYS[name].run]:.1f}" if name in WAYS else ""
        rows[name] = [*(cell(values.get(column)) for column in COLUMNS), minutes]
    counts = ", ".join(f"{name} {value['of']}" for name, value in next(iter(measures.values())).items())
    note = f"Questions: {counts}. Minutes: in steps of the way's training; of the CLAP before it: {spent['clap']:.1f}."
    table = markdown(("way", *COLUMNS, "minutes"), rows) + "\n\n" + note
    write_text(out / "table.md", table + "\n")
    told = {"measures": measures, "guesses": results["guesses"], "minutes": spent}
    write_text(out / "results.json", json.dumps(told, indent=1))
    plot(out / "compare.png", measures, results["guesses"])
    return table


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of runs, table and plot")
    parser.add_argument("--sounds", default="shipped", metavar="DIR|CSV", help="labelled clips (default: shipped)")
    parser.add_argument(
        "--questions", type=int, default=120, metavar="N", help="about mixtures, and as many about unseen ones"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what is trained, and leave")
    options = parser.parse_args(argv)
    if options.questions < 6:
        parser.error(f"--questions {options.questions}: expected at least 6")
    if options.out.is_file():
        parser.error(f"--out {options.out} is a file; give a folder")
    try:
        return compare(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except AlmError as error:
        print(f"compare_mats: error: {error}", file=sys.stderr)
        return error.exit_code


def compare(options: argparse.Namespace) -> int:
    """What the parsed command line asks for; returns the exit code."""
    out = options.out.absolute()
    sounds = options.sounds if options.sounds == "shipped" else str(Path(options.sounds).expanduser().resolve())
    planned = experiments(out, sounds)
    if options.dry_run:
        for name, experiment in planned.items():
            print(f"{name}: " + ", ".join(f"{s.name} {s.steps} x {s.data.batch_size}" for s in experiment.stages))
        return 0
    choose_clips(sounds, "unseen")  # a misspelt folder is found now
    if train_all(out, planned):
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    asked = questions(scenes_of(planned[WAYS["Santa"].run]), options.questions)
    print("\n" + report(out, score_all(out, asked, options.questions), planned))
    return 0


if __name__ == "__main__":
    sys.exit(main())
