"""Composed scenes: each kind of question by its own closed-form score, as the quickstart scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from alm_jax.core.cache import cache_dir
from alm_jax.data.composed import Scenes
from alm_jax.data.questions import majority_answers, score
from alm_jax.data.rows import AudioRow, read_rows
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.eval.answers import mean
from alm_jax.eval.metrics.spread import by_group
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task

KINDS = ("events", "first", "order", "presence", "count")
_SEED = 1000  # of scenes that no shipped recipe trains on


@dataclass(frozen=True)
class ComposedScenes(Task):
    """Questions about scenes mixed from labelled clips; needs no data.

    Attributes:
        scenes: how they are composed; a run that trained on scenes is asked about other ones of the same make.
    """

    scenes: Scenes = field(default_factory=lambda: Scenes(24, kinds=KINDS))
    needs = "nothing: scenes are composed of the clips in this package"
    hows = ("generate",)
    options: ClassVar[Mapping[str, int]] = {"scenes": 24, "per_kind": 20}

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        seed = self.scenes.seed + _SEED + asking.seed
        path = replace(self.scenes, n=asking.options["scenes"], seed=seed).write(cache_dir())
        rows, asked = read_rows(path), {kind: 0 for kind in self.scenes.kinds}
        for row in rows.rows:
            if row.task in asked and asked[row.task] < asking.options["per_kind"]:
                asked[row.task] += 1
                yield replace(row, audio_id=str(rows.clip_path(row.audio_id)), caption="")

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        usual = majority_answers([{"task": answer.row.task, "output": answer.row.output} for answer in answers])
        mine = [_score(answer.row, answer.said) for answer in answers]
        constant = [_score(answer.row, usual[answer.row.task]) for answer in answers]
        kinds = [answer.row.task for answer in answers]
        of_kinds = {
            name: {kind: float(values.mean()) for kind, values in by_group(kinds, scores).items()}
            for name, scores in (("score", mine), ("most frequent answer", constant))
        }
        metrics = {"score": mean(list(of_kinds["score"].values()))}
        metrics["most_frequent_answer"] = mean(list(of_kinds["most frequent answer"].values()))
        return Scores(metrics, [{"score": value} for value in mine], per_class=of_kinds)


def _score(row: AudioRow, said: str) -> float:
    return score(row.task, said, {"audio_id": row.audio_id, "meta": dict(row.meta)})
