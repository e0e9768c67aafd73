"""Sounds in time: detection, and counting of annotated events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.eval.metrics.answers import count
from alm_jax.eval.metrics.events import Counts, Event, event_counts, events, micro_macro, psds, segment_counts, spans
from alm_jax.eval.metrics.spread import counted
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, meta_of, one_row

LABEL = "{LABEL}"


@dataclass(frozen=True)
class Detect(Task):
    """When each sound is heard. A prompt with `{LABEL}` asks about one sound of the clip at a time (APT), one without
    about all (LTU); a sound is scored in the clips that it was asked about."""

    needs = "events (label, onset, offset)"
    hows = ("generate",)

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            groups = _by_label(clip) if LABEL in asking.prompt else {"": list(clip.events)}
            for label, group in groups.items():
                if group:
                    told = [[event.label, event.onset, event.offset] for event in group]
                    output = "; ".join(f"{name}: [{onset:.1f}s-{offset:.1f}s]" for name, onset, offset in told)
                    question = asking.prompt.replace(LABEL, label)
                    yield one_row(clip, question, "detection", output, events=told, asked=label, seconds=_length(clip))

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        rows, segments, whole = [], {}, {}
        true: dict[str, list[Event]] = {}
        said: dict[str, list[Event]] = {}
        seconds: dict[str, float] = {}
        for answer in answers:
            asked, length = meta_of(answer.row, "asked"), float(meta_of(answer.row, "seconds"))
            mine = [Event(*event) for event in meta_of(answer.row, "events")]
            told = (
                [Event(asked, *span) for span in spans(answer.said)] if asked else events(answer.said, scoring.classes)
            )
            told = [Event(name, onset, min(offset, length)) for name, onset, offset in told if onset < length]
            _add(segments, segment_counts(mine, told, length))
            own = event_counts(mine, told)
            _add(whole, own)
            rows.append({"read": [list(event) for event in told], "event_f1": micro_macro(own)[0]})
            clip = str(answer.row.audio_id)
            true.setdefault(clip, []).extend(mine)
            said.setdefault(clip, []).extend(told)
            seconds[clip] = max(length, seconds.get(clip, 0.0))
        metrics = dict(zip(("event_f1", "event_f1_macro"), micro_macro(whole)))
        metrics |= dict(zip(("segment_f1", "segment_f1_macro"), micro_macro(segments)))
        notes = ()
        try:
            metrics["psds"] = psds(true, said, seconds)
        except UsageError as error:
            notes = (f"PSDS is left out: {error}",)
        per = {
            "event F1": {name: counts.f1 for name, counts in whole.items() if counts.true},
            "segment F1": {name: counts.f1 for name, counts in segments.items() if counts.true},
        }
        return Scores(metrics, rows, per_class=per, notes=notes)


@dataclass(frozen=True)
class Count(Task):
    """How often a sound is heard, where its annotated events can be counted."""

    needs = "events (label, onset, offset) that can be counted"
    hows = ("generate",)

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            for label, group in _by_label(clip).items():
                if all(event.countable for event in group):
                    question = asking.prompt.replace(LABEL, label)
                    yield one_row(clip, question, "counting", str(len(group)), label=label, count=len(group))

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        return count_scores(answers)


def count_scores(answers: Sequence[Answer]) -> Scores:
    """Correlation, ratio and exactness of counts, of all answers and by sound (LTU, table 13)."""
    labels = np.array([meta_of(answer.row, "label") for answer in answers])
    true = np.array([meta_of(answer.row, "count") for answer in answers], float)
    read = [count(answer.said) for answer in answers]
    said = np.array([np.nan if number is None else number for number in read], float)
    every = asdict(counted(true, said))
    metrics = {"pearson": every["pearson"], "ratio": every["ratio"], "exact": every["exact"], "error": every["error"]}
    metrics["with_a_number"] = float(np.mean(~np.isnan(said)))
    each = {label: counted(true[labels == label], said[labels == label]) for label in sorted(set(labels))}
    per = {
        name: {label: getattr(found, name) for label, found in each.items()} for name in ("pearson", "ratio", "exact")
    }
    return Scores(metrics, [{"read": number} for number in read], per_class=per)


def _by_label(clip: LabelledClip) -> dict[str, list[ClipEvent]]:
    groups: dict[str, list[ClipEvent]] = {}
    for event in clip.events:
        groups.setdefault(event.label, []).append(event)
    return groups


def _length(clip: LabelledClip) -> float:
    return clip.seconds or max(event.offset for event in clip.events)


def _add(whole: dict[str, Counts], part: Mapping[str, Counts]) -> None:
    for label, counts in part.items():
        whole[label] = whole.get(label, Counts()) + counts
