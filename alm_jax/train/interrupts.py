"""Asked to stop: SIGTERM, Ctrl-C, or a cluster's notice, taken up between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupts:
    """While it is entered, the first SIGTERM or Ctrl-C is noted and a second Ctrl-C leaves at once.

    Under `jax.distributed` the runtime takes SIGTERM itself and lets all processes agree on the step to stop after.

    Args:
        say: called with a line for the person who interrupts.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int | None = None) -> bool:
        """Whether to stop; `step` is the same on all processes, None where they do not count together."""
        if step is not None and jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _note(self, number: int, frame: Any) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        again = " (again: stop at once)" if number == signal.SIGINT else ""
        if not self._asked:
            self._say(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint{again}")
        self._asked = True
