"""Sound event detection: events read from answers, segment- and event-based F1, PSDS.

F1 as Mesaros et al. (2016) define them and `sed_eval` counts them; PSDS by `sed-scores-eval` (extra `eval`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alm_jax.core.errors import UsageError

SEGMENT_SECONDS = 1.0
COLLAR_SECONDS, COLLAR_SHARE = 0.2, 0.2
_SPAN = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?\s*(?:-|–|to|and)\s*(\d+(?:\.\d+)?)\s*(?:s\b|sec|seconds)?", re.IGNORECASE
)


class Event(NamedTuple):
    """A sound and when it is heard, in seconds."""

    label: str
    onset: float
    offset: float


@dataclass(frozen=True)
class Counts:
    """Decisions: true events or segments, said ones, and those that are both."""

    true: int = 0
    said: int = 0
    hits: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.true + other.true, self.said + other.said, self.hits + other.hits)

    @property
    def f1(self) -> float:
        """0 where there is nothing, said or true."""
        return 2 * self.hits / (self.true + self.said) if self.true + self.said else 0.0


def spans(text: str) -> list[tuple[float, float]]:
    """Intervals of an answer such as `1.0s-2.5s; 3.0s-4.0s.`; those that do not end after their start are left out."""
    found = [(float(match[1]), float(match[2])) for match in _SPAN.finditer(text)]
    return [(onset, offset) for onset, offset in found if offset > onset]


def events(text: str, labels: Sequence[str]) -> list[Event]:
    """Events of an answer such as `dog bark: [1.0s-2.5s], [3.0s-4.0s]; rain: [0.0s-10.0s]` (LTU's temporal tasks).

    What stands before an interval names its sound: the longest of `labels` that it holds, or else itself.
    """
    found = []
    for part in re.split(r";|\.\s", text):
        name = part[: match.start()] if (match := _SPAN.search(part)) else ""
        named = [label for label in labels if f" {_words(label)} " in f" {_words(name)} "]
        label = max(named, key=len, default=_words(name))
        found += [Event(label, onset, offset) for onset, offset in spans(part)]
    return found


def segment_counts(
    true: Sequence[Event], said: Sequence[Event], seconds: float, resolution: float = SEGMENT_SECONDS
) -> dict[str, Counts]:
    """By label, the segments of a recording in which it is heard at all (`sed_eval.sound_event.SegmentBasedMetrics`).

    Args:
        seconds: length of the recording. resolution: of a segment.
    """
    count = int(np.ceil(seconds / resolution))
    roll = {label: np.zeros((2, count), bool) for label in _labels(true, said)}
    for row, given in enumerate((true, said)):
        for label, onset, offset in given:
            roll[label][row, int(onset / resolution) : int(np.ceil(offset / resolution))] = True
    return {label: Counts(int(a.sum()), int(b.sum()), int((a & b).sum())) for label, (a, b) in roll.items()}


def event_counts(
    true: Sequence[Event], said: Sequence[Event], collar: float = COLLAR_SECONDS, share: float = COLLAR_SHARE
) -> dict[str, Counts]:
    """By label, events with a partner whose onset is within `collar` seconds, and whose offset within the greater of
    that and `share` of the true length (`sed_eval.sound_event.EventBasedMetrics`); as many pairs as can be made."""
    found = {}
    for label in _labels(true, said):
        a, b = ([event for event in given if event.label == label] for given in (true, said))
        near = np.array([[_near(t, s, collar, share) for s in b] for t in a], bool).reshape(len(a), len(b))
        found[label] = Counts(len(a), len(b), _pairs(near))
    return found


def micro_macro(counts: dict[str, Counts]) -> tuple[float, float]:
    """F1 of all labels together, and the mean over labels that are true somewhere (NaN of none)."""
    whole = sum(counts.values(), Counts())
    each = [count.f1 for count in counts.values() if count.true]
    return whole.f1, float(np.mean(each)) if each else float("nan")


def psds(
    true: dict[str, Sequence[Event]],
    said: dict[str, Sequence[Event]],
    seconds: dict[str, float],
    *,
    dtc: float = 0.7,
    gtc: float = 0.7,
    max_efpr: float = 100.0,
) -> float:
    """Polyphonic sound detection score (Bilen et al. 2020) of answers without scores, at their one operating point.

    Args:
        true, said: events by recording. seconds: of each recording.
        dtc, gtc: shares of overlap that a detection and a true event need. max_efpr: false positives an hour.

    Raises:
        UsageError: `sed-scores-eval` is not installed, or nothing is true.
    """
    try:
        import pandas as pd
        from sed_scores_eval import intersection_based
        from sed_scores_eval.base_modules.scores import create_score_dataframe
    except ImportError as error:
        raise UsageError(f"PSDS is counted by sed-scores-eval ({error}): pip install 'alm_jax[eval]'") from None
    labels = sorted({event.label for given in true.values() for event in given})
    if not labels:
        raise UsageError("no recording has an event: there is nothing to detect")
    scores: dict[str, pd.DataFrame] = {}
    for name, length in seconds.items():
        mine = [event for event in said.get(name, ()) if event.label in labels]
        edges = sorted({0.0, length, *(time for _, *times in mine for time in times if 0 < time < length)})
        active = np.zeros((len(edges) - 1, len(labels)))
        for label, onset, offset in mine:
            middle = (np.array(edges[:-1]) + edges[1:]) / 2
            active[(middle > onset) & (middle < offset), labels.index(label)] = 1.0
        scores[name] = create_score_dataframe(active, np.array(edges), labels)
    truth = {name: [(onset, offset, label) for label, onset, offset in true.get(name, ())] for name in seconds}
    value, *_ = intersection_based.psds(
        scores, truth, seconds, dtc_threshold=dtc, gtc_threshold=gtc, max_efpr=max_efpr, num_jobs=1
    )
    return float(value)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _labels(*given: Iterable[Event]) -> list[str]:
    return sorted({event.label for each in given for event in each})


def _near(true: Event, said: Event, collar: float, share: float) -> bool:
    reach = max(collar, share * (true.offset - true.onset))
    return abs(true.onset - said.onset) <= collar and abs(true.offset - said.offset) <= reach


def _pairs(near: np.ndarray) -> int:
    """Most pairs that leave none twice."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return int((maximum_bipartite_matching(csr_array(near.astype(int))) >= 0).sum()) if near.any() else 0
