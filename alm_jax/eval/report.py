"""What benchmarks found as one HTML file that stands alone: tables, confusion, classes, calibration, answers."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.core.files import write_text
from alm_jax.eval.run import PREDICTIONS, SCORES, Evaluated

_CLASSES = 60  # of a confusion matrix or bar chart that can still be read; of more the most confused are shown
_ANSWERS = 40
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .7rem 0 } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd }
td.n { text-align: right; font-variant-numeric: tabular-nums } th { text-align: left } img { max-width: 100% }
.note { color: #8a5a00 } .facts { color: #666 } tr.wrong td:last-child { color: #a00 } h2 { margin-top: 2.5rem }
"""


def write_report(path: Path, title: str, found: Sequence[Evaluated]) -> None:
    """Write the report; the same outcomes give the same bytes."""
    parts = [f"<h1>{_text(title)}</h1>", _summary(found), *(part for each in found for part in _section(each))]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )
    write_text(path, page)


def main_metric(found: Evaluated) -> tuple[str, float]:
    """The score that a benchmark is known by."""
    return next(iter(found.scores.metrics.items()))


def shown(value: float) -> str:
    """A score as tables have it."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _summary(found: Sequence[Evaluated]) -> str:
    rows = [
        [_link(each), _text(name), _number(value), str(each.rows)]
        for each in found
        for name, value in [main_metric(each)]
    ]
    return _table(["benchmark", "metric", "score", "rows"], rows)


def _section(found: Evaluated) -> Iterator[str]:
    scores = found.scores
    yield f'<h2 id="{_text(label(found))}">{_text(label(found))}</h2>'
    told = {name: value for name, value in found.facts.items() if value not in (None, "")}
    if told.get("trials") == 1:
        del told["trials"]
    facts = ", ".join(f"{name} {value}" for name, value in told.items())
    failed = f"; {found.failed} could not be asked, and count as wrong" if found.failed else ""
    yield f'<p class="facts">{_text(facts)}; {found.rows} rows{failed}</p>'
    yield from (f'<p class="note">{_text(note)}</p>' for note in scores.notes)
    spread = lambda name: f" ± {shown(found.spread[name])}" if name in found.spread else ""
    yield _table(["metric", "value"], [[_text(n), _number(v, spread(n))] for n, v in scores.metrics.items()])
    if scores.confusion is not None:
        yield _picture(confusion_figure(scores.confusion, scores.classes), "confusion of classes")
    if scores.per_class:
        yield _picture(class_figure(scores.per_class), "scores by class")
    if scores.calibration is not None:
        yield _picture(calibration_figure(scores.calibration, scores.sure), "calibration")
    yield _answers(found)


def label(found: Evaluated) -> str:
    """A benchmark's name, with what was done to its clips."""
    return found.name + (f" ({found.facts['corrupt']})" if found.facts.get("corrupt") else "")


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Any:
    """Shares of each true class; of many classes those most often mistaken."""
    from matplotlib.figure import Figure

    wrong = counts.sum(1) + counts.sum(0) - 2 * np.diagonal(counts)
    # Classes that occur at all; of too many those mistaken most, in their own order.
    kept = np.flatnonzero(counts.sum(1) + counts.sum(0))
    kept = np.sort(kept[np.argsort(-wrong[kept], kind="stable")][:_CLASSES])
    part = counts[np.ix_(kept, kept)]
    shares = part / np.maximum(counts.sum(1)[kept, None], 1)
    size = min(12.0, 3.0 + 0.22 * len(kept))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    names = [classes[i] for i in kept]
    axes.set_xticks(range(len(kept)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(kept)), names, fontsize=7)
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    figure.colorbar(image, label="share of the true class")
    return figure


def class_figure(per_class: Mapping[str, Mapping[str, float]]) -> Any:
    """A bar for each class and metric; of many classes the worst and the best by the first metric."""
    from matplotlib.figure import Figure

    first = next(iter(per_class.values()))
    order = sorted((name for name in first if not math.isnan(first[name])), key=lambda name: (first[name], name))
    if len(order) > _CLASSES:
        order = [*order[: _CLASSES // 2], *order[-_CLASSES // 2 :]]
    figure = Figure(figsize=(8, 1.2 + 0.22 * max(len(order), 2)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(per_class)
    for i, (metric, values) in enumerate(per_class.items()):
        places = np.arange(len(order)) + (i - (len(per_class) - 1) / 2) * height
        axes.barh(places, [values.get(name, math.nan) for name in order], height, label=metric)
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.legend(fontsize=8)
    return figure


def calibration_figure(bins: Any, sure: str) -> Any:
    """Accuracy over confidence; what is calibrated lies on the line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7")
    sizes = 20 + 180 * np.array(bins.counts) / max(bins.counts)
    axes.plot(bins.confidence, bins.accuracy, color="C0")
    axes.scatter(bins.confidence, bins.accuracy, sizes, color="C0")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=sure, ylabel="share that is right")
    return figure


def _answers(found: Evaluated) -> str:
    """The first questions and answers."""
    lines = lambda name: (found.folder / name).open(encoding="utf-8")
    with lines(PREDICTIONS) as said, lines(SCORES) as scored:
        pairs = [(json.loads(a), json.loads(b)) for a, b in islice(zip(said, scored), _ANSWERS)]
    rows = []
    for told, score in pairs:
        answer = told.get("prediction", told.get("error", ""))
        answer = "(an embedding)" if isinstance(answer, list) else answer
        clips = told["audio_id"] if isinstance(told["audio_id"], list) else [told["audio_id"]]
        values = ", ".join(f"{name} {_short(value)}" for name, value in score.items())
        cells = [" ".join(Path(clip).name for clip in clips), told["instruction"], told["output"], answer, values]
        rows.append([_text(cell if len(cell) < 300 else f"{cell[:297]}...") for cell in cells])
    table = _table(["clip", "question", "true", "said", "score"], rows)
    return f"<details><summary>the first {len(rows)} of {found.rows} answers</summary>{table}</details>"


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _picture(figure: Any, what: str) -> str:
    data = io.BytesIO()
    # Without the time and the version of the program, the same figure is the same bytes.
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return f'<p><img alt="{_text(what)}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"></p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(
        f"<tr>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>{body}</table>"


def _number(value: float, more: str = "") -> str:
    return f'<td class="n">{shown(value)}{more}</td>'


def _link(found: Evaluated) -> str:
    return f'<a href="#{_text(label(found))}">{_text(label(found))}</a>'


def _text(text: str) -> str:
    return html.escape(" ".join(str(text).split()))
