"""`alm eval`: benchmarks run on a model, their scores, and a report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from alm_jax.cli.parse import check_folder, load_model, parse, parse_settings
from alm_jax.core.errors import AlmError, UsageError

ALL = "all"
_KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass
class Eval:
    """Run benchmarks on a model: ask every question, score the answers, write a report.

    MODEL is as for alm ask: a run's folder, or a checkpoint. DIR is a prepared data set or a folder of several (alm
    data prepare), a manifest of labelled clips, or rows that alm tasks wrote; the benchmark `scenes` needs none.
    alm eval --list shows the benchmarks and what each needs; `all` runs those whose data lie below DIR, and `scenes`.

    OUT/BENCHMARK gets rows.jsonl (questions), predictions.jsonl (answers), scores.jsonl (a line an answer) and
    metrics.json; OUT gets report.html, which stands alone, and summary.json. Stopped at any point, the same command
    goes on where it was and ends with the same files.

    examples:
      alm eval --list
      alm eval runs/tiny --benchmark scenes
      alm eval runs/ltu --benchmark esc50 --data data
      alm eval runs/ltu --benchmark all --data data --out results/ltu
      alm eval runs/apt --benchmark esc50 --data data --how choices          rank the classes, write nothing
      alm eval runs/mats --benchmark clotho --data data --prompt mats --spice spice
      alm eval clap.safetensors --benchmark esc50,clotho_retrieval --data data --out results/clap
      alm eval runs/ltu --benchmark clotho --data data --trials 5            five drawn answers, mean and deviation
      alm eval runs/apt --benchmark few_shot --data shipped --option ways=3 --option shots=1
      alm eval runs/tiny --benchmark scenes --corrupt noise:20dB --corrupt lowpass:2000Hz
      alm eval runs/ltu --benchmark esc50 --data esc50.csv --limit 100 --encoder bert-large-uncased
    """

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """a run's folder; a checkpoint's file or folder; or a model's name on the hub; a CLAP by itself embeds"""
    benchmark: Annotated[str, tyro.conf.arg(metavar="NAME[,NAME]")] = ""
    """benchmarks, parted by commas, or all"""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """prepared data set, folder of several, manifest of clips, or rows; `shipped`: the clips in this package"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write to (default: MODEL/eval, of a run)"""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """show the benchmarks, what each needs and asks"""
    how: Literal["generate", "choices", "embed"] | None = None
    """free answers; the likeliest of given ones; or embeddings of clips (CLAP); default: each benchmark's usual way"""
    prompt: Annotated[str, tyro.conf.arg(metavar="SYSTEM|TEXT")] = ""
    """whose prompt (ltu, apt, mats), or a question; default: the first that --list shows"""
    split: str = ""
    """of the data, several joined by +, or all; default: the benchmark's own"""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """ask the first N questions only"""
    corrupt: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KIND:LEVEL")] = ()
    """also ask about worse clips: noise:10dB, gain:-20dB, lowpass:4000Hz, clip:6dB; again for each further one"""
    encoder: Annotated[str, tyro.conf.arg(metavar="NAME|URL|aligner")] = "sentence-transformers/all-MiniLM-L6-v2"
    """compares answers with classes: a BERT or RoBERTa, an endpoint that embeds texts, or the model's own aligner"""
    encoder_model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """of an encoder's endpoint, such as text-embedding-ada-002"""
    judge: Annotated[str, tyro.conf.arg(metavar="URL")] = ""
    """OpenAI-compatible endpoint that says whether answers answer (its key in OPENAI_API_KEY)"""
    judge_model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """the judge's model"""
    fense: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """FENSE's detector of errors, such as echecker_clotho_audiocaps_base.ckpt (docs/evaluation.md)"""
    spice: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder with spice-1.0.jar and lib/ (docs/evaluation.md); without it SPICE is left out"""
    trials: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """draw N answers to each question, score each set"""
    greedy: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """take the best token always, whatever the model's own way to answer"""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """questions asked at once"""
    segments: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """hear a long clip in up to N windows"""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """longest answer; default: the benchmark's"""
    seed: int = 0
    """of drawn answers, episodes, pairs and scenes"""
    option: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=N")] = ()
    """a number that a benchmark leaves open, such as ways=5 (--list shows them); again for each further one"""
    which: Literal["last", "best"] = "last"
    """of a run: the latest checkpoint, or the one with the lowest validation loss"""
    base: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """of a published checkpoint: the model that it was trained over"""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """of a checkpoint: its tokenizer"""
    memory: Annotated[str | None, tyro.conf.arg(metavar="BANK")] = None
    """of MATS: draw clips towards these texts (alm memory build)"""
    santa: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """of --memory: another way than the model's own, such as share=0.5, clusters=0, normalise=true"""


def run(args: list[str]) -> int | None:
    """Run the benchmarks that `args` name; what is wrong with them is said before the model is loaded."""
    options = parse(Eval, args, "eval")
    if options.list:
        _list()
        return 0
    settings, corruptions = _settings(options)
    chosen = _chosen(options)
    _check_options(settings.options, chosen)
    out = _out(options)
    model, chosen = _load(options, chosen)
    found, failures = [], []
    try:
        for name, benchmark in chosen.items():
            for corruption in (None, *corruptions):
                folder = out / (name if corruption is None else f"{name}-{corruption.slug}")
                try:
                    found.append(
                        _evaluated(model, name, benchmark, options.data, folder, replace(settings, corrupt=corruption))
                    )
                except AlmError as error:
                    if options.benchmark != ALL:
                        raise
                    failures.append(f"{folder.name}: {' '.join(str(error).split())}")
                    print(f"alm: note: {failures[-1]}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"stopped; {out} keeps what was answered, and the same command goes on", file=sys.stderr)
        raise
    _show(out, options.model or "", found)
    if failures:
        raise AlmError(f"{len(failures)} of {len(failures) + len(found)} benchmarks failed: {'; '.join(failures)}")
    return 0


def _list() -> None:
    from rich.table import Table

    from alm_jax.core.display import print_table
    from alm_jax.eval.benchmarks import BENCHMARKS

    table = Table("benchmark", "what", "data set", "split", "needs", "answers by", "prompts", "options")
    for name, each in BENCHMARKS.items():
        hows, prompts = ", ".join(each.task.hows), ", ".join(each.prompts)
        options = ", ".join(f"{key}={value}" for key, value in {**each.task.options, **each.options}.items())
        table.add_row(name, each.about, each.dataset or "none", each.split, each.task.needs, hows, prompts, options)
    print_table(table)


def _settings(options: Eval) -> tuple[Any, list[Any]]:
    from alm_jax.data.endpoint import Endpoint
    from alm_jax.eval.corrupt import read_corruption
    from alm_jax.eval.run import Settings

    for name in ("limit", "trials", "batch_size", "segments", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: expected 0 or more")
    if bool(options.judge) != bool(options.judge_model):
        raise UsageError("--judge URL and --judge-model NAME go together: give both or neither")
    judge = None
    if options.judge:
        judge = Endpoint(options.judge, options.judge_model, os.environ.get(_KEY_VARIABLE, ""), temperature=0.0)
    same = ("limit", "split", "prompt", "how", "seed", "trials", "batch_size", "max_new_tokens", "segments", "greedy")
    settings = Settings(
        **{name: getattr(options, name) for name in same},
        encoder=options.encoder,
        encoder_model=options.encoder_model,
        fense=options.fense,
        spice=options.spice,
        judge=judge,
        options={name: _number(name, text) for name, text in parse_settings(options.option, "--option").items()},
    )
    return settings, [read_corruption(text) for text in dict.fromkeys(options.corrupt)]


def _number(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise UsageError(f"--option {name}={text}: expected a whole number, 1 or more")
    return int(text)


def _chosen(options: Eval) -> dict[str, Any]:
    from alm_jax.eval.benchmarks import BENCHMARKS, find_benchmark
    from alm_jax.eval.data import within

    if options.model is None or not options.benchmark:
        raise UsageError("give MODEL and --benchmark NAME; alm eval --list lists the benchmarks")
    names = [name.strip() for name in options.benchmark.split(",") if name.strip()]
    if names != [ALL]:
        chosen = {name: find_benchmark(name) for name in names}
    elif options.data is None:
        raise UsageError("--benchmark all runs what lies below --data DIR: give it")
    else:
        there = lambda each: not each.dataset or (each.dataset != "any" and within(options.data, each.dataset))
        can = lambda each: options.judge or not each.task.judged
        chosen = {name: each for name, each in BENCHMARKS.items() if there(each) and can(each)}
    if options.data is not None and not _exists(options.data):
        raise UsageError(f"--data {options.data}: no such file or folder")
    if missing := [name for name, each in chosen.items() if each.dataset and options.data is None]:
        raise UsageError(f"{missing[0]} needs --data DIR with {chosen[missing[0]].task.needs}")
    return chosen


def _exists(data: str) -> bool:
    """Of what lies at a URL the reader says so."""
    return data == "shipped" or "://" in data or Path(data).expanduser().exists()


def _check_options(given: Mapping[str, int], chosen: Mapping[str, Any]) -> None:
    """Of several benchmarks each takes the options that it has; one that none has is a mistake."""
    known = {name for each in chosen.values() for name in each.task.options}
    if unknown := sorted(set(given) - known):
        raise UsageError(f"{', '.join(chosen)}: no option {', '.join(unknown)}; expected {', '.join(sorted(known))}")


def _out(options: Eval) -> Path:
    from alm_jax.api import check_source, is_run

    check_source(options.model)
    if options.out is None and not is_run(options.model):
        raise UsageError(f"{options.model} is no run, whose folder would keep what is found: give --out DIR")
    out = options.out or Path(options.model) / "eval"
    check_folder(out)
    return out


def _load(options: Eval, chosen: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model; and the benchmarks, of which `scenes` takes the make of scenes that a run was trained on."""
    from alm_jax.api import clap_by_itself, is_run

    if clap_by_itself(options.model):
        return _load_clap(options, chosen)
    model = load_model(options)
    if options.benchmark == ALL and not model.embeds:
        chosen = {name: each for name, each in chosen.items() if each.task.hows != ("embed",)}
    if "scenes" in chosen and is_run(options.model):
        chosen["scenes"] = _own_scenes(chosen["scenes"], options.model)
    return model, chosen


def _load_clap(options: Eval, chosen: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A CLAP by itself; `all` are the benchmarks that are told from embeddings."""
    from alm_jax.api import load_clap

    if options.base or options.memory or options.santa:
        raise UsageError(
            f"{options.model} is a CLAP, which has no use for --base, --memory and --santa: leave them out"
        )
    if options.benchmark == ALL:
        chosen = {name: each for name, each in chosen.items() if "embed" in each.task.hows}
    return load_clap(options.model, which=options.which, tokenizer=options.tokenizer), chosen


def _own_scenes(benchmark: Any, folder: str) -> Any:
    from alm_jax.data.composed import Scenes
    from alm_jax.eval.protocols.scenes import KINDS
    from alm_jax.train.checkpoint import RunFolder
    from alm_jax.train.config import experiment_of

    path = Path(folder).expanduser()
    stage = experiment_of(RunFolder.open(path).config(), path).stages[-1]
    mine = next((source for source in stage.data.sources if isinstance(source, Scenes)), None)
    if mine is None:
        return benchmark
    kinds = tuple(kind for kind in mine.kinds if kind in KINDS) or mine.kinds
    return replace(benchmark, task=replace(benchmark.task, scenes=replace(mine, kinds=kinds)))


def _evaluated(model: Any, name: str, benchmark: Any, data: str | None, folder: Path, settings: Any) -> Any:
    from alm_jax.core.display import progress
    from alm_jax.eval.run import evaluate

    mine = {key: value for key, value in settings.options.items() if key in benchmark.task.options}
    settings = replace(settings, options=mine)
    with progress(folder.name) as update:
        tell = lambda what, done, total: update(done, total)
        return evaluate(model, name, benchmark, data, folder, settings, tell)


def _show(out: Path, title: str, found: Sequence[Any]) -> None:
    """Write the summary and the report, and print the table."""
    from rich.table import Table

    from alm_jax.core.display import print_table
    from alm_jax.core.files import remove_partials, write_text
    from alm_jax.eval.report import label, main_metric, shown, write_report

    if not found:
        return
    remove_partials(out)
    table = Table("benchmark", "metric", "score", "rows", "failed")
    summary = {}
    for each in found:
        name, value = main_metric(each)
        table.add_row(label(each), name.replace("_", " "), shown(value), str(each.rows), str(each.failed or ""))
        summary[each.folder.name] = json.loads((each.folder / "metrics.json").read_text())["metrics"]
        for note in each.scores.notes:
            print(f"alm: note: {label(each)}: {note}", file=sys.stderr)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_report(out / "report.html", f"Evaluation of {Path(title).name}", found)
    print_table(table)
    print(f"{out / 'report.html'}")
