"""What tools that compare trainings share: measures with their intervals, a table and a plot.

A measure is `{"right": n, "of": n}` (a share of questions, whose interval is Wilson's), `{"mean": x, "error": e, "of":
n}` (a mean of scores with its standard error) or `{"share": x}` (known exactly).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alm_jax.core.errors import ConfigError
from alm_jax.core.files import new_file

Measure = Mapping[str, Any]


def read_scored(path: Path, questions: int) -> dict[str, Any] | None:
    """Results that were written before, None if there are none.

    Raises:
        ConfigError: another number of questions was asked, so that they can't stand in one table.
    """
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    if results.get("questions") != questions:
        raise ConfigError(
            f"{path} was scored with --questions {results.get('questions')}, not {questions}: give the same number, or "
            "remove that file"
        )
    return results


def mean_of(scores: Sequence[float]) -> dict[str, Any]:
    """Scores as a measure."""
    mean = sum(scores) / len(scores)
    error = math.sqrt(sum((value - mean) ** 2 for value in scores) / max(1, len(scores) - 1) / len(scores))
    return {"mean": mean, "error": error, "of": len(scores)}


def pooled(results: Sequence[Measure]) -> dict[str, Any]:
    """One measure of several runs together."""
    if "right" in results[0]:
        return {"right": sum(r["right"] for r in results), "of": sum(r["of"] for r in results)}
    count = len(results)
    error = math.sqrt(sum(r["error"] ** 2 for r in results)) / count
    return {"mean": sum(r["mean"] for r in results) / count, "error": error, "of": sum(r["of"] for r in results)}


def bounds(value: Measure) -> tuple[float, float, float]:
    """A measure and its 95 % interval."""
    from alm_jax.eval.choices import wilson

    if "right" in value:
        return value["right"] / value["of"], *wilson(value["right"], value["of"])
    if "mean" in value:
        reach = 1.96 * value["error"]
        return value["mean"], max(0.0, value["mean"] - reach), min(1.0, value["mean"] + reach)
    return (value["share"],) * 3


def cell(value: Measure | None) -> str:
    """`0.42 (0.33-0.52)`"""
    if value is None:
        return ""
    middle, low, high = bounds(value)
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f}-{high:.2f})"


def markdown(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table: the first column is the rows' names."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join([name.replace('_', ' '), *cells])} |" for name, cells in rows.items())])


def seconds(folder: Path) -> dict[str, float]:
    """Time in the steps of each stage of a run, compilation included."""
    from alm_jax.train.metrics import read_metrics

    found: dict[str, float] = {}
    for row in read_metrics(folder / "metrics.jsonl"):
        found[row["stage"]] = found.get(row["stage"], 0.0) + row.get("step_time_s", 0.0)
    return found


def plot(
    path: Path, measures: Mapping[str, Mapping[str, Measure]], guesses: Mapping[str, Mapping[str, Measure]]
) -> None:
    """A panel a measure: variants with their intervals, each guess a line in a style of its own."""
    from matplotlib.figure import Figure

    names, columns = list(measures), list(next(iter(measures.values())))
    figure = Figure(figsize=(3 * len(columns), 0.5 * len(names) + 1.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], columns):
        for place, name in enumerate(names):
            middle, low, high = bounds(measures[name][measure])
            axes.plot([low, high], [place, place], "|-", color=f"C{place}")
            axes.plot(middle, place, "o", color=f"C{place}")
        for style, (name, values) in zip(("--", ":", "-."), guesses.items()):
            if measure in values:
                axes.axvline(bounds(values[measure])[0], linestyle=style, color="0.5", label=name)
        axes.set(title=measure, xlim=(-0.02, 1.02))
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.grid(alpha=0.3)
    axes.invert_yaxis()
    handles = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels())}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    with new_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
