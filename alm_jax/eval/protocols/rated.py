"""Open questions whose answers a language model rates beside the true ones (AIR-Bench, chat part)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alm_jax.core.errors import DataError, UsageError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.eval.metrics.answers import ToRate, rated
from alm_jax.eval.metrics.spread import by_group
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, meta_of, one_row
from alm_jax.eval.protocols.captions import JUDGED

# Official `cal_score.py`.
_KINDS = {
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "speech_and_sound_QA": "speech and sound",
    "speech_and_music_QA": "speech and music",
}
_WORST = 1.0


@dataclass(frozen=True)
class Chat(Task):
    """Questions of clips that a prepared set describes in words, which the judge reads in the clip's place.

    The score is the mean of 1 to 10 that answers get; an answer wins that is rated higher than the true one. What could
    not be asked is rated 1 and loses; what the judge gave no scores is left out, `rated` is the share of the others.
    """

    needs = "questions with answers and a description of the clip (AIR-Bench's chat part, prepared)"
    hows = ("generate",)
    judged = True

    def check(self, scoring: Scoring) -> None:
        if scoring.judge is None:
            raise UsageError("answers are rated by a language model: name it with --judge URL --judge-model NAME")

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            told = asking.about.get(clip.path, {})
            if told.get("about"):
                for question, answer in clip.questions:
                    meta = {"question": question, "about": str(told["about"]), "group": str(told.get("task", ""))}
                    yield one_row(clip, asking.about_question(question), "chat", answer, **meta)

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        heard = [answer for answer in answers if not answer.failed]
        items = [ToRate(meta_of(a.row, "about"), meta_of(a.row, "question"), a.row.output, a.said) for a in heard]
        told = iter(rated(items, scoring.judge, scoring.folder / JUDGED, scoring.progress))
        pairs = [(None, _WORST) if answer.failed else next(told) for answer in answers]
        if not any(pair and pair[0] is not None for pair in pairs):
            raise DataError(f"{scoring.folder / JUDGED}: the judge gave no two scores to any answer; take another one")
        rows = [{} if pair is None else {"reference": pair[0], "score": pair[1], "won": _won(pair)} for pair in pairs]
        kept = [(answer, pair) for answer, pair in zip(answers, pairs) if pair is not None]
        kinds = [_KINDS.get(group := answer.row.meta.get("group", ""), group) for answer, _ in kept]
        metrics = {
            "score": float(np.mean([pair[1] for _, pair in kept])),
            "reference_score": float(np.mean([pair[0] for _, pair in kept if pair[0] is not None])),
            "win_rate": float(np.mean([_won(pair) for _, pair in kept])),
            "rated": len(kept) / len(answers),
        }
        per = {
            "score": {kind: float(each.mean()) for kind, each in by_group(kinds, [p[1] for _, p in kept]).items()},
            "win rate": {
                kind: float(each.mean()) for kind, each in by_group(kinds, [_won(p) for _, p in kept]).items()
            },
        }
        return Scores(metrics, rows, per_class=per)


def _won(pair: tuple[float | None, float]) -> bool:
    reference, score = pair
    return reference is not None and score > reference
