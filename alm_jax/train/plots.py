"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

from alm_jax.train.metrics import read_metrics


def plot_losses(run: Path, path: Path | None = None) -> Path:
    """Draw training and validation loss of all stages, one after the other, from `metrics.jsonl`.

    Args:
        run: the run's folder. path: of the PNG, by default `loss.png` in it.
    """
    from matplotlib.figure import Figure

    path = path or run / "loss.png"
    rows = read_metrics(run / "metrics.jsonl")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    offset = 0
    for index, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        colour = f"C{index}"
        mine = [row for row in rows if row["stage"] == stage]
        trained = [(offset + row["step"], row["loss"]) for row in mine if "loss" in row]
        checked = [(offset + row["step"], row["validation_loss"]) for row in mine if "validation_loss" in row]
        if trained:
            axes.plot(*zip(*trained), color=colour, alpha=0.3, linewidth=1)
            axes.plot(*zip(*_smooth(trained)), color=colour, label=stage)
        if checked:
            axes.plot(*zip(*checked), "o--", color=colour, markersize=4, label=f"{stage}, validation")
        offset += max((row["step"] for row in mine), default=0)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=run.name)
    axes.grid(alpha=0.3)
    if rows:
        axes.legend()
    figure.savefig(path, dpi=120)
    return path


def _smooth(points: list[tuple[int, float]], memory: float = 0.9) -> list[tuple[int, float]]:
    """Exponential moving average, started at the first value."""
    smoothed, value = [], points[0][1]
    for step, loss in points:
        value = memory * value + (1 - memory) * loss
        smoothed.append((step, value))
    return smoothed
