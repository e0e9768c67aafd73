#!/usr/bin/env python
"""Train the variants of an APT config, score them on scenes that they never heard, and write the table.

    python tools/compare_apt.py --out runs/apt                    every variant once: docs/apt.md has what it took
    python tools/compare_apt.py --out runs/apt --seeds 3          three of each; table and plot pool them
    python tools/compare_apt.py --out runs/apt --only curriculum --only linear
    python tools/compare_apt.py --out runs/apt --dry-run          which variants and stages there are, and leave

The variants are those of the config's sweep(); stages that two of them have in common, with all that comes before, are
trained once. Each is scored on scenes composed anew from the training's clips:

    tags        F1 of the sounds that it names in its own words (greedy)
    named       which sound a scene of one sound holds: the most likely of all names, by mean log-likelihood a token
    unseen      the same for recordings that training never heard
    few-shot    the label of a clip after labelled examples of each choice: the most likely choice
    query only  the same questions without the examples
    NLAR        questions about two recordings: the most likely of all answers that any such question has

Beside them stand chance and the most frequent answer of training (of NLAR's, to questions of the same kind). Intervals
are 95 % (Wilson's; of tags 1.96 standard errors) as if all questions were independent: they leave out what another seed
of training would change, and --seeds asks the same questions of each. OUT gets a folder
a run (with results.json: every answer), table.md, results.json and compare.png. Stopped by Ctrl-C or a crash, the same
command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from comparison import bounds, cell, markdown, mean_of, plot, pooled, read_scored, seconds

from alm_jax.core.config import ConfigFile, apply_overrides, load_config_file
from alm_jax.core.errors import AlmError, ConfigError
from alm_jax.core.files import new_folder, write_text
from alm_jax.data.rows import AudioRow, RowSet, read_rows
from alm_jax.data.tasks.prompts import FEW_SHOT
from alm_jax.data.tasks.source import Tasks
from alm_jax.models.registry import named_config
from alm_jax.train.config import Experiment, run_config

CONFIG = "apt/smollm2_whisper_base"
MEASURES = ("tags", "named", "unseen", "few-shot", "query only", "NLAR")
_HELD_OUT = 1000  # added to the seeds of training's scenes
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """A variant with a seed, its folder, and how many questions of a measure it is asked at most."""

    variant: str
    experiment: Experiment
    folder: Path
    questions: int


@dataclass(frozen=True)
class Questions:
    """The questions of one measure.

    Attributes:
        rows: asked, their clips' paths absolute. choices: of each; empty where the model answers in its own words.
        usual: the answer to each that is most frequent in training, or () if that says nothing.
    """

    rows: tuple[AudioRow, ...]
    choices: tuple[tuple[str, ...], ...] = ()
    usual: tuple[str, ...] = ()


def plan(file: ConfigFile, out: Path, seeds: int, questions: int) -> list[Run]:
    """All runs, seed by seed, so that every variant has a first result early."""
    base = file.get_config()
    experiments = [apply_overrides(base, item, named_config) for item in file.sweep()]
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"the variants of sweep() are named {names}; expected one at least, each with its own name")
    seeded = [replace(experiment, seed=base.seed + n) for n in range(seeds) for experiment in experiments]
    return [Run(each.name, each, out / each.name / f"seed{each.seed}", questions) for each in seeded]


def shared_stages(one: Experiment, other: Experiment) -> int:
    """How many first stages two experiments have in common, with everything that these depend on."""
    for count in range(min(len(one.stages), len(other.stages)), 0, -1):
        if replace(one, name="", stages=one.stages[:count]) == replace(other, name="", stages=other.stages[:count]):
            return count
    return 0


def adopt(run: Run, others: Sequence[Run]) -> str:
    """Begin a run with the stages that another has finished already; which, in words ("" for none)."""
    from alm_jax.train.checkpoint import RunFolder
    from alm_jax.train.metrics import read_metrics

    def finished(other: Run, count: int) -> bool:
        folder = RunFolder(other.folder)
        stages = list(enumerate(run.experiment.stages[:count]))
        return count > 0 and all(folder.stage(i, stage.name).finished is not None for i, stage in stages)

    if run.folder.exists() and any(run.folder.iterdir()):
        return ""
    counts = {other.folder: shared_stages(run.experiment, other.experiment) for other in others}
    able = [other for other in others if finished(other, counts[other.folder])]
    if not able:
        return ""
    source = max(able, key=lambda other: counts[other.folder])
    stages = run.experiment.stages[: counts[source.folder]]
    with new_folder(run.folder) as folder:
        for i, stage in enumerate(stages):
            shutil.copytree(source.folder / "stages" / f"{i}_{stage.name}", folder / "stages" / f"{i}_{stage.name}")
        for tokenizer in source.folder.glob("*tokenizer"):
            shutil.copytree(tokenizer, folder / tokenizer.name)
        names = {stage.name for stage in stages}
        kept = [row for row in read_metrics(source.folder / "metrics.jsonl") if row["stage"] in names]
        write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        RunFolder.create(folder, run_config(run.experiment))
    return f"{', '.join(stage.name for stage in stages)} of {source.variant}"


def source_of(base: Experiment, task: str) -> Tasks:
    """What the config trains a task on."""
    sources = [source for stage in base.stages for source in stage.data.sources]
    found = next((source for source in sources if isinstance(source, Tasks) and task in source.tasks), None)
    if found is None:
        raise ConfigError(f"no stage of {base.name} trains the task {task}; the comparison scores it")
    return found


def held_out(source: Tasks, task: str, n: int, *, split: str = "train", single: bool = False) -> Tasks:
    """The same task about other scenes; of one sound each if `single`."""
    scene = replace(source.clips.scene, sounds=(1, 1)) if single else source.clips.scene
    clips = replace(source.clips, n=n, seed=source.clips.seed + _HELD_OUT, split=split, scene=scene)
    return replace(source, clips=clips, tasks=(task,), seed=source.seed + _HELD_OUT, repeat=1)


def rows_of(source: Tasks, task: str = "", most: int | None = None, tell: Tell = lambda done, total: None):
    """Rows of a source, those of one task if it is given, at most so many, spread evenly."""
    from alm_jax.core.cache import cache_dir

    rowset: RowSet = read_rows(source.write(cache_dir(), progress=tell))
    rows = [replace(row, audio_id=tuple(str(rowset.clip_path(clip)) for clip in row.clips)) for row in rowset.rows]
    rows = [row for row in rows if task in ("", row.task)]
    step = max(1.0, len(rows) / most) if most else 1.0
    return [rows[int(i * step)] for i in range(min(len(rows), most or len(rows)))]


def questions(base: Experiment, size: int, tell: Tell) -> dict[str, Questions]:
    """What is asked for each measure, and what is answered without listening."""
    from alm_jax.eval.choices import usual

    tagging, episodes, pairs = (source_of(base, task) for task in ("tagging", "few_shot", "nlar"))
    trained = {"tagging": rows_of(tagging, "tagging", tell=tell), "nlar": rows_of(pairs, "nlar", tell=tell)}
    by_kind, often = usual(trained["nlar"], lambda row: row.meta["kind"]), usual(trained["tagging"])[None]
    single = usual([row for row in trained["tagging"] if len(row.meta["labels"]) == 1])[None]

    def asked(source: Tasks, task: str, n: int, **options: Any) -> list[AudioRow]:
        return rows_of(held_out(source, task, n, **options), most=size, tell=tell)

    shots = replace(episodes.options, few_shot=replace(episodes.options.few_shot, episodes=size))
    reasoning = replace(pairs.options, nlar=replace(pairs.options.nlar, pairs=max(1, size // 4)))
    tags = asked(tagging, "tagging", size // 2)
    named = asked(tagging, "tagging", size, single=True)
    unseen = asked(tagging, "tagging", size // 2, split="unseen", single=True)
    few = asked(replace(episodes, options=shots), "few_shot", size)
    nlar = asked(replace(pairs, options=reasoning), "nlar", size // 2)
    alone = [replace(row, instruction=FEW_SHOT, audio_id=row.audio_id[-1]) for row in few]
    labels = tuple(sorted({label for row in (*trained["tagging"], *named, *unseen) for label in row.meta["labels"]}))
    answers = tuple(sorted({row.output for row in (*trained["nlar"], *nlar)}))
    choices = tuple(tuple(row.meta["choices"]) for row in few)
    each = lambda rows, given: (tuple(rows), (given,) * len(rows))
    return {
        "tags": Questions(tuple(tags), usual=(often,) * len(tags)),
        "named": Questions(*each(named, labels), usual=(single,) * len(named)),
        "unseen": Questions(*each(unseen, labels), usual=(single,) * len(unseen)),
        "few-shot": Questions(tuple(few), choices),
        "query only": Questions(tuple(alone), choices),
        "NLAR": Questions(*each(nlar, answers), usual=tuple(by_kind.get(row.meta["kind"], "") for row in nlar)),
    }


def measured(rows: Sequence[AudioRow], answers: Sequence[str], choices: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A measure as results hold it: `right` and `of`, or the mean F1 and its standard error."""
    from alm_jax.data.questions import score
    from alm_jax.eval.choices import accuracy

    if choices:
        return asdict(accuracy(rows, answers, choices))
    return mean_of([float(score("events", text, {"meta": dict(row.meta)})) for row, text in zip(rows, answers)])


class Scorer:
    """Asks models the questions; clips are encoded once, since all variants listen through one encoder.

    Args:
        asked: by measure.
    """

    def __init__(self, asked: Mapping[str, Questions]):
        self.asked = asked
        self._features: dict[Path, Any] = {}

    def __call__(self, model: Any, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
        """`{"measures": {...}, "answers": {...}}` of a `LoadedModel`."""
        from alm_jax.eval.answers import answer_rows, encode_clips
        from alm_jax.eval.choices import choose

        clips = dict.fromkeys(Path(clip) for given in self.asked.values() for row in given.rows for clip in row.clips)
        new = [clip for clip in clips if clip not in self._features]
        for start in range(0, len(new), 8):
            tell("listening", start, len(new))
            self._features |= encode_clips(model, new[start : start + 8])
        results: dict[str, Any] = {"measures": {}, "answers": {}}
        for name, given in self.asked.items():
            features = [[self._features[Path(clip)] for clip in row.clips] for row in given.rows]
            if given.choices:
                answers = choose(model, given.rows, features, given.choices, progress=partial(tell, name))
            else:
                answers = answer_rows(model, given.rows, features, max_new_tokens=24, progress=partial(tell, name))
            results["measures"][name] = measured(given.rows, answers, given.choices)
            results["answers"][name] = [
                {"question": row.instruction, "true": row.output, "answer": answer, "meta": dict(row.meta)}
                for row, answer in zip(given.rows, answers)
            ]
        return results


def baselines(asked: Mapping[str, Questions]) -> dict[str, dict[str, Any]]:
    """Measures of who does not listen."""
    chance, usual = {}, {}
    for name, given in asked.items():
        if given.usual:
            usual[name] = measured(given.rows, given.usual, given.choices)
        if given.choices:
            chance[name] = {"share": measured(given.rows, [""] * len(given.rows), given.choices)["chance"]}
    return {"chance": chance, "most frequent answer": usual}


def results_of(run: Run) -> dict[str, Any] | None:
    """What a run was scored, None if it was not yet."""
    return read_scored(run.folder / "results.json", run.questions)


def work(runs: Sequence[Run], scorer: Callable[[], Scorer]) -> bool:
    """Train and score what is not yet; whether it was asked to stop."""
    from alm_jax.api import loaded_run
    from alm_jax.core.display import progress
    from alm_jax.train.curriculum import train
    from alm_jax.train.run import load_run

    for n, run in enumerate(runs, start=1):
        head = f"[{n}/{len(runs)}] {run.variant}, seed {run.experiment.seed}"
        if results_of(run) is not None:
            print(f"{head}: done before", flush=True)
            continue
        taken = adopt(run, runs)
        print(f"{head}: training" + (f" after {taken}" if taken else ""), flush=True)
        if train(run.experiment, run.folder, resume=True).stopped:
            return True
        began = time.monotonic()
        with progress(f"{head}: scoring") as bar:
            results = scorer()(loaded_run(load_run(run.folder)), lambda what, done, total: bar(done, total))
        times = {"training": seconds(run.folder), "scoring": time.monotonic() - began}
        results |= {"seconds": times, "questions": run.questions}
        write_text(run.folder / "results.json", json.dumps(results, indent=1))
        print(f"{head}: " + ", ".join(f"{name} {cell(value)}" for name, value in results["measures"].items()))
    return False


def report(out: Path, runs: Sequence[Run], asked: Mapping[str, Questions]) -> str:
    """Write table.md, results.json and compare.png of what is scored; the table."""
    scored: dict[str, list[dict]] = {}
    for run in runs:
        if (results := results_of(run)) is not None:
            scored.setdefault(run.variant, []).append(results)
    measures = {
        name: {measure: pooled([r["measures"][measure] for r in results]) for measure in MEASURES}
        for name, results in scored.items()
    }
    guesses = baselines(asked)
    rows = {}
    for name, values in (measures | guesses).items():
        results = scored.get(name, [])
        spent = [sum(r["seconds"]["training"].values()) / 60 for r in results]
        minutes = f"{sum(spent) / len(spent):.1f}" if spent else ""
        rows[name] = [f"{len(results) or ''}", *(cell(values.get(measure)) for measure in MEASURES), minutes]
    counts = ", ".join(f"{name} {len(given.rows)}" for name, given in asked.items())
    table = markdown(("variant", "runs", *MEASURES, "minutes"), rows)
    table += f"\n\nQuestions a run: {counts}. Minutes: of training, its shared stages included."
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.md", table + "\n")
    told = {name: {m: dict(zip(("value", "low", "high"), bounds(v))) for m, v in values.items()}
            for name, values in (measures | guesses).items()}  # fmt: skip
    write_text(out / "results.json", json.dumps(told, indent=1))
    if measures:
        plot(out / "compare.png", measures, guesses)
    return table


def overview(runs: Sequence[Run]) -> Iterator[str]:
    """The runs and their stages, in lines."""
    for n, run in enumerate(runs):
        stages = run.experiment.stages
        shared = max((shared_stages(run.experiment, other.experiment) for other in runs[:n]), default=0)
        told = [f"{s.name} {s.steps} x {s.data.batch_size}{' (shared)' * (i < shared)}" for i, s in enumerate(stages)]
        yield f"{run.variant}, seed {run.experiment.seed}: {', '.join(told)}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of runs, table and plot")
    parser.add_argument("--config", default=CONFIG, help=f"with a sweep() of named variants (default: {CONFIG})")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs a variant (default: 1)")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="leave the other variants out")
    parser.add_argument("--questions", type=int, default=96, metavar="N", help="of a measure, at most (default: 96)")
    parser.add_argument("--dry-run", action="store_true", help="show the runs and their stages, and leave")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.questions < 4:
        parser.error(f"--seeds {options.seeds}, --questions {options.questions}: expected at least 1 and 4")
    if options.out.is_file():
        parser.error(f"--out {options.out} is a file; give a folder")
    try:
        return compare(options)
    except AlmError as error:
        print(f"compare_apt: error: {error}", file=sys.stderr)
        return error.exit_code


def compare(options: argparse.Namespace) -> int:
    """What the parsed command line asks for; returns the exit code."""
    from alm_jax.core.display import progress

    file = load_config_file(options.config)
    runs = plan(file, options.out.absolute(), options.seeds, options.questions)
    if options.only:
        if unknown := sorted(set(options.only) - {run.variant for run in runs}):
            known = ", ".join(dict.fromkeys(run.variant for run in runs))
            raise ConfigError(f"--only {', '.join(unknown)}: no such variant; there are {known}")
        runs = [run for run in runs if run.variant in options.only]
    if options.dry_run:
        print("\n".join(overview(runs)))
        return 0
    with progress("questions") as tell:
        asked = questions(file.get_config(), options.questions, tell)
    scorer = Scorer(asked)
    try:
        stopped = work(runs, lambda: scorer)
    except KeyboardInterrupt:
        stopped = True
    print("\n" + report(options.out, runs, asked))
    if stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
