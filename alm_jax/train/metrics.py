"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard, and a progress display."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


class Tracker(Protocol):
    """Anything that follows a run, beside the shipped ones too. Rows hold `stage`, `step` and numbers."""

    def log(self, row: Row) -> None:
        """Take a row: of training (`loss`, `learning_rate`, `grad_norm`, `tokens_per_s`, `step_time_s`; of that
        `data_wait_s` for the next batch, `host_s` to start the step, `device_wait_s` for its end; where the
        device's peak is known, of the FLOPs that the model needs, `tflops_per_s_per_device` and `mfu`; `hbm_peak_gib`
        where the device tells) or of validation (`validation_loss`, ...)."""

    def close(self) -> None:
        """The run has ended, or stopped."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, in order.

    Args:
        path: the file; lines that it holds are kept.
        stages: names of all stages, in order.
        resume: (stage, step) of the checkpoint that the run goes on from; later rows and a half-written line are
            dropped, since they will be written again. None: nothing is kept.
    """

    def __init__(self, path: Path, stages: Sequence[str], resume: tuple[str, int] | None):
        kept = [] if resume is None else [row for row in read_metrics(path) if _until(row, stages, resume)]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
        self._file = path.open("a")

    def log(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Return when all rows are on disk: a checkpoint may not be ahead of its metrics."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`; a line that a killed run left half-written ends it."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _until(row: Row, stages: Sequence[str], resume: tuple[str, int]) -> bool:
    stage, step = resume
    return (stages.index(row["stage"]), row["step"]) <= (stages.index(stage), step)


class TensorBoard:
    """TensorBoard event files, one folder a stage (tensorboardX; no TensorFlow needed)."""

    def __init__(self, folder: Path, resume: tuple[str, int] | None = None):
        self._folder, self._resume = folder, resume
        self._writers: dict[str, Any] = {}

    def log(self, row: Row) -> None:
        stage, step = row["stage"], row["step"]
        writer = self._writers.get(stage) or self._writers.setdefault(stage, self._open(stage))
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                writer.add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _open(self, stage: str) -> Any:
        from tensorboardX import SummaryWriter

        purge = self._resume[1] + 1 if self._resume and self._resume[0] == stage else None
        return SummaryWriter(str(self._folder / stage), purge_step=purge)


class Progress:
    """What a person sees on stderr: a bar on a terminal, a line now and then elsewhere.

    Args:
        log: file that keeps everything said, or None.
        show: False for a run that writes to the log alone.
        every: seconds between lines where there is no terminal.
    """

    def __init__(self, log: Path | None, show: bool = True, every: float = 10.0):
        self._log = None if log is None else log.open("a")
        self._show, self._every = show, every
        self._bar = self._task = None
        self._stage, self._total, self._last, self._validation = "", 0, 0.0, ""
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            ]
            self._bar = Progress(*text, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage (or another task that counts) begins or goes on."""
        self._stage, self._total, self._validation = stage, total, ""
        if self._bar is not None:
            if self._task is not None:
                self._bar.update(self._task, visible=False)
            self._task = self._bar.add_task(stage, total=total, completed=done, note="")

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last >= self._every or done == self._total:
            self._last = time.monotonic()
            self._print(f"{self._stage} {done}/{self._total} {note}".rstrip())

    def log(self, row: Row) -> None:
        if "validation_loss" in row:
            self._validation = f" validation {row['validation_loss']:.4f}"
        if "loss" in row:
            speed = f"{row['tokens_per_s']:.0f} tokens/s"
            self.update(row["step"], f"loss {row['loss']:.4f}{self._validation} {speed}")

    def say(self, text: str) -> None:
        """A line that stays, above the bar and in the log."""
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._log is not None:
            self._log.close()

    def _print(self, text: str) -> None:
        if self._show:
            print(text, file=sys.stderr, flush=True)
