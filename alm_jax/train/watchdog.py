"""Notices when nothing gets done any more, and shows where each process stands."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time

from alm_jax.core.processes import this_process


class Watchdog:
    """While it is entered, a stall is told on stderr: which process, since when, and the stacks of all its threads.

    Every process watches itself: where others wait in a collective, the one that they wait for shows by its stack.
    A stall is told once; training goes on if it ends.

    Args:
        seconds: without a `beat` that make a stall.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last, self._what = time.monotonic(), "the start"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def beat(self, what: str) -> None:
        """Something was done: `step 3`."""
        self._last, self._what = time.monotonic(), what

    def _watch(self) -> None:
        told = None
        while not self._done.wait(min(1.0, self._seconds / 4)):
            last, what = self._last, self._what
            if time.monotonic() - last < self._seconds or told == last:
                continue
            told = last
            print(
                f"alm: stalled: {this_process()} has done nothing for {self._seconds:g} s since {what}; its threads:",
                file=sys.__stderr__,
                flush=True,
            )
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
