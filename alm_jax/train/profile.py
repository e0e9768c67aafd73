"""Traces of some steps, for TensorBoard's profiler and XProf."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jax

from alm_jax.core.errors import UsageError


def read_steps(text: str) -> tuple[int, int]:
    """`10-12` are three steps, `10` is one.

    Raises:
        UsageError: it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(f"--profile {text}: expected a step, or the first and the last of some, as 10-12")
    return first, last


class Profiler:
    """Traces the steps `first` to `last` of a stage into `folder`; of each process what it does.

    Args:
        steps: (first, last), counted from 1; None: nothing is traced.
        say: is told where the trace is.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, say: Callable[[str], None]):
        self._steps, self._folder, self._say = steps, folder, say
        self._on = False

    def before(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Enter what comes back around the step."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, results: object) -> None:
        """The step was begun; its last one is waited for."""
        if self._on and step == self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """End a trace that is under way."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            self._say(f"{self._folder} has a trace: tensorboard --logdir {self._folder} (pip install xprof)")
