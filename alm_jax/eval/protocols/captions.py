"""Captioning and open questions: free text against references, by words, by meaning, and by a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.open_ended import answers_it
from alm_jax.eval.metrics.answers import followed
from alm_jax.eval.metrics.captions import check_installed, score_captions
from alm_jax.eval.metrics.text import penalised, sentence_similarity
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, meta_of, one_row
from alm_jax.eval.protocols.classify import after_colon

JUDGED = "judge.jsonl"
NO_JUDGE = "the instruction following rate is left out: name a judge with --judge URL --judge-model NAME"


@dataclass(frozen=True)
class Caption(Task):
    """A description of each clip, against all of its captions."""

    needs = "captions"
    hows = ("generate",)

    def check(self, scoring: Scoring) -> None:
        _check_text(scoring)

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            if clip.captions:
                yield one_row(clip, asking.prompt, "captioning", clip.captions[0], captions=list(clip.captions))

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        # `Audio caption: A dog barks` is scored without its head (LTU `eval_audiocaps.py`, `eval_clotho.py`).
        said = [after_colon(answer.said) for answer in answers]
        return _against(said, [meta_of(answer.row, "captions") for answer in answers], scoring, "spider", "cider_d")


@dataclass(frozen=True)
class OpenQuestions(Task):
    """Questions with an answer in a sentence or more; how often an answer answers its question is left to a judge.

    Attributes:
        judged: the judge's rate is the main score, and references need not be there.
    """

    judged: bool = False
    needs = "questions with answers"
    hows = ("generate",)

    def check(self, scoring: Scoring) -> None:
        if not self.judged:
            _check_text(scoring)
        elif scoring.judge is None:
            raise UsageError(NO_JUDGE)

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            for question, answer in clip.questions:
                yield one_row(clip, asking.about_question(question), "question", answer, question=question)

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        said = [answer.said for answer in answers]
        found = Scores({}, [{} for _ in answers])
        if scoring.judge is not None:
            told = _followed(answers, scoring)
            found = Scores({"followed": float(np.mean(told))}, [{"followed": yes} for yes in told])
        found.metrics |= _refusals(answers)
        if self.judged:
            return found
        other = _against(said, [[answer.row.output] for answer in answers], scoring, "bleu_4", "rouge_l")
        rows = [a | b for a, b in zip(other.rows, found.rows)]
        notes = (*other.notes, *([] if scoring.judge else [NO_JUDGE]))
        return Scores(other.metrics | found.metrics, rows, notes=notes)


def _check_text(scoring: Scoring) -> None:
    check_installed(scoring.spice)
    scoring.encoder()
    if scoring.errors is not None:
        scoring.errors()


def _followed(answers: Sequence[Answer], scoring: Scoring) -> list[bool]:
    """Of each answer whether a judge holds that it answers; what could not be asked has none."""
    heard = [answer for answer in answers if not answer.failed]
    questions = [answer.row.meta.get("question", answer.row.instruction) for answer in heard]
    said = [answer.said for answer in heard]
    told = iter(followed(questions, said, scoring.judge, scoring.folder / JUDGED, scoring.progress))
    return [not answer.failed and next(told) for answer in answers]


def _refusals(answers: Sequence[Answer]) -> dict[str, float]:
    """How often a model declines, where rows say whether they can be answered (`alm tasks --task open_ended`): of those
    that cannot (LTU, table 8), and of those that can."""
    declines = {"refused_unanswerable": False, "refused_answerable": True}
    found = {}
    for name, answerable in declines.items():
        mine = [answer for answer in answers if answer.row.meta.get("answerable") is answerable and not answer.failed]
        if mine:
            found[name] = float(np.mean([not answers_it(answer.said) for answer in mine]))
    return found


def _against(said: Sequence[str], references: Sequence[Sequence[str]], scoring: Scoring, *main: str) -> Scores:
    """All scores of text; the first of `main` that could be had comes first."""
    found = score_captions(said, references, scoring.spice)
    alike = sentence_similarity(said, references, scoring.encoder())
    meaning = {"sentence_similarity": alike}
    if scoring.errors is not None:
        meaning["fense"] = penalised(alike, scoring.errors()(said))
    every = found.corpus | {name: float(values.mean()) for name, values in meaning.items()}
    first = next(name for name in main if name in every)
    each = found.each | meaning
    rows = [{"read": text} | {name: float(values[i]) for name, values in each.items()} for i, text in enumerate(said)]
    return Scores({first: every[first]} | every, rows, notes=found.notes)
