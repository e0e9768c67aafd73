"""What a sweep found: a table of means and standard deviations, and the same as JSON, CSV and a plot."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alm_jax.core.files import new_file, write_text
from alm_jax.train.metrics import read_metrics

if TYPE_CHECKING:
    from alm_jax.cli.sweep_runs import Run

_COLUMNS = 6  # measures that fit beside the variant in a terminal; the files hold all


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds: how many runs are done and failed, and (mean, standard deviation) of each measure.

    The standard deviation is that of a sample (n - 1), None for a single run.
    """

    variant: str
    overrides: Mapping[str, Any]
    done: int
    failed: int
    measures: dict[str, tuple[float, float | None]]


def measure(folder: Path) -> dict[str, float]:
    """Numbers of a run that is done: of its last stage the best and the last validation loss (the last training loss
    if it was never validated), and every number in its `results.json`, by dotted path."""
    rows = read_metrics(folder / "metrics.jsonl")
    rows = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    found = {"best_validation_loss": min(validation), "final_validation_loss": validation[-1]} if validation else {}
    if not found:
        found = {"final_loss": [row["loss"] for row in rows if "loss" in row][-1]}
    results = folder / "results.json"
    return found | (dict(_numbers(json.loads(results.read_text()), "")) if results.is_file() else {})


def _numbers(node: Any, at: str) -> Any:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _numbers(value, f"{at}.{key}" if at else key)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield at, float(node)


def summarize(runs: Sequence[Run], measures: Mapping[Path, Mapping[str, float]]) -> list[Summary]:
    """One summary a variant, in the sweep's order; `measures` are those of the runs that are done, by folder."""
    summaries = []
    for variant in dict.fromkeys(run.variant for run in runs):
        mine = [run for run in runs if run.variant == variant]
        done = [measures[run.folder] for run in mine if run.status == "done"]
        names = dict.fromkeys(name for found in done for name in found)
        values = {name: [found[name] for found in done if name in found] for name in names}
        spread = {n: (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None) for n, v in values.items()}
        failed = sum(run.status == "failed" for run in mine)
        summaries.append(Summary(variant, mine[0].overrides, len(done), failed, spread))
    return summaries


def report(out: Path, runs: Sequence[Run]) -> None:
    """Print the table and write `sweep.json`, `sweep.csv` and `sweep.png` to the folder `out`."""
    measures = {run.folder: measure(run.folder) for run in runs if run.status == "done"}
    summaries = summarize(runs, measures)
    out.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "variant": run.variant,
            "overrides": {path: _plain(value) for path, value in run.overrides.items()},
            "seed": run.seed,
            "folder": run.folder.relative_to(out).as_posix(),
            "status": run.status,
            "error": run.error,
            "measures": measures.get(run.folder, {}),
        }
        for run in runs
    ]
    variants = [
        {
            "variant": summary.variant,
            "done": summary.done,
            "failed": summary.failed,
            "measures": {name: {"mean": mean, "std": std} for name, (mean, std) in summary.measures.items()},
        }
        for summary in summaries
    ]
    write_text(out / "sweep.json", json.dumps({"runs": records, "variants": variants}, indent=1))
    _write_csv(out / "sweep.csv", records)
    _print_table(summaries)
    if measures:
        plot(out / "sweep.png", runs, summaries, measures)
        print(f"{out / 'sweep.json'}, {out / 'sweep.csv'}, {out / 'sweep.png'}")


def _print_table(summaries: Sequence[Summary]) -> None:
    from rich.table import Table

    from alm_jax.core.display import print_table

    names = list(dict.fromkeys(name for summary in summaries for name in summary.measures))[:_COLUMNS]
    table = Table("variant", "runs")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for summary in summaries:
        failed = f", {summary.failed} failed" if summary.failed else ""
        cells = [_spread(*summary.measures[name]) if name in summary.measures else "" for name in names]
        table.add_row(summary.variant, f"{summary.done}{failed}", *cells)
    print_table(table)


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record["measures"]))
    paths = list(dict.fromkeys(path for record in records for path in record["overrides"]))
    with new_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "folder", "status", *paths, *names])
        for record in records:
            fixed = [record[key] for key in ("variant", "seed", "folder", "status")]
            given = [record["overrides"].get(path, "") for path in paths]
            writer.writerow([*fixed, *given, *(record["measures"].get(name, "") for name in names)])


def plot(
    path: Path, runs: Sequence[Run], summaries: Sequence[Summary], measures: Mapping[Path, Mapping[str, float]]
) -> None:
    """Draw the first measure of every run as a dot and of every variant as mean ± standard deviation.

    Where the variants differ in one number alone it is the horizontal axis, logarithmic if it spans a decade.
    """
    from matplotlib.figure import Figure

    shown = [summary for summary in summaries if summary.measures]
    name = next(iter(shown[0].measures))
    shown = [summary for summary in shown if name in summary.measures]
    axis, places = _axis(shown)
    order = sorted(range(len(shown)), key=places.__getitem__)
    xs = [places[i] for i in order]
    means, deviations = zip(*(shown[i].measures[name] for i in order))
    place = {summary.variant: x for summary, x in zip(shown, places)}
    dots = [(place[run.variant], measures[run.folder][name]) for run in runs if name in measures.get(run.folder, {})]

    figure = Figure(figsize=(max(5.0, 0.9 * len(shown)), 4.0), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(xs, means, [std or 0.0 for std in deviations], fmt="s-" if axis else "s", capsize=4)
    axes.plot(*zip(*dots), "o", color="0.5", markersize=4)
    if axis is None:
        axes.set_xticks(xs, [shown[i].variant for i in order], rotation=30, ha="right")
    else:
        axes.set_xlabel(axis)
        if xs[0] > 0 and xs[-1] >= 10 * xs[0]:
            axes.set_xscale("log")
    axes.set_ylabel(name.replace("_", " "))
    with new_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _axis(summaries: Sequence[Summary]) -> tuple[str | None, list[float]]:
    paths = {path for summary in summaries for path in summary.overrides}
    if len(paths) == 1 and all(len(summary.overrides) == 1 for summary in summaries):
        (path,) = paths
        values = [summary.overrides[path] for summary in summaries]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return path, [float(value) for value in values]
    return None, [float(n) for n in range(len(summaries))]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
