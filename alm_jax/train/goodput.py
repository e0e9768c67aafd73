"""Where the time of a run goes, over all the times that it was started."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alm_jax.core.files import write_text

GOOD = "steps"
AWAY = "away"


class Goodput:
    """Seconds of a run by what they went to, kept in a file.

    What is spent within something else counts for itself alone. What nothing was said of is `setup`. Between the last
    `save` of one process and the start of the next the run was `away`: what a killed process did after its last
    checkpoint is lost, and is part of that.

    Args:
        path: the file; goes on from what it holds. None: nothing is kept.
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time):
        self._path, self._clock = path, clock
        self._seconds, until = _read(path)
        self._since, self._stack = clock(), ["setup"]
        if until is not None:
            self._add(AWAY, self._since - until)

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Time in here goes to `what`."""
        self._turn()
        self._stack.append(what)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """By what they went to, the largest first."""
        self._turn()
        return dict(sorted(self._seconds.items(), key=lambda item: -item[1]))

    @property
    def share(self) -> float:
        """Of the time that the run was there: how much went to steps of training (goodput)."""
        there = {what: spent for what, spent in self.seconds.items() if what != AWAY}
        return there.get(GOOD, 0.0) / max(sum(there.values()), 1e-9)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is not None:
            told = {"seconds": {what: round(spent, 3) for what, spent in self.seconds.items()}}
            write_text(self._path, json.dumps(told | {"goodput": round(self.share, 4), "until": self._since}, indent=1))

    def __str__(self) -> str:
        total = max(sum(self.seconds.values()), 1e-9)
        parts = [f"{what} {spent / total:.1%}" for what, spent in self.seconds.items() if spent >= total / 1000]
        return f"{', '.join(parts)} of {total:.0f} s"

    def _turn(self) -> None:
        now = self._clock()
        self._add(self._stack[-1], now - self._since)
        self._since = now

    def _add(self, what: str, spent: float) -> None:
        self._seconds[what] = self._seconds.get(what, 0.0) + max(0.0, spent)  # clocks are set back now and then


def _read(path: Path | None) -> tuple[dict[str, float], float | None]:
    """(seconds, when they were written) of a file; nothing of one that is not there or damaged: it is a statistic."""
    try:
        told = json.loads(path.read_text()) if path is not None else {}
        return {str(what): float(spent) for what, spent in told["seconds"].items()}, float(told["until"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, None
