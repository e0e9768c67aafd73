"""Questions with short answers: of several annotators, of given options, about two recordings, few-shot episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.few_shot import FewShot, few_shot
from alm_jax.data.tasks.reasoning import Reasoning, reasoning
from alm_jax.data.tasks.rules import write_by_rule
from alm_jax.eval.choices import wilson
from alm_jax.eval.metrics.answers import agreed, normal, short_match
from alm_jax.eval.metrics.classes import calibration
from alm_jax.eval.metrics.options import mmau_prompt, option_of
from alm_jax.eval.metrics.spread import by_group, mean_interval
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, meta_of, one_row

_NAN = float("nan")


@dataclass(frozen=True)
class ShortAnswers(Task):
    """Questions that several annotators answered by yes, no or a word (ClothoAQA: three each).

    True is what most of them say; where they all differ, what any of them says. `binary` scores are of questions whose
    true answer is yes or no, `unanimous` ones of those that all annotators answer alike.
    """

    needs = "questions with answers"
    hows = ("generate",)

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            answers: dict[str, list[str]] = {}
            for question, answer in clip.questions:
                answers.setdefault(question, []).append(answer)
            for question, given in answers.items():
                true = agreed(given) or normal(given[0])
                yield one_row(clip, asking.about_question(question), "question", true, answers=given)

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        given = [meta_of(answer.row, "answers") for answer in answers]
        true = [agreed(each) for each in given]
        accepted = [[one] if one else each for one, each in zip(true, given)]
        right = [any(short_match(one, a.said) for one in each) for each, a in zip(accepted, answers)]
        binary = np.array([one in ("yes", "no") for one in true])
        alike = np.array([len(set(map(normal, each))) == 1 for each in given])
        share = lambda chosen: float(np.array(right)[chosen].mean()) if chosen.any() else _NAN
        metrics = {
            "accuracy": share(np.ones(len(right), bool)),
            "binary_accuracy": share(binary),
            "word_accuracy": share(~binary),
            "unanimous_accuracy": share(alike),
            "unanimous_binary_accuracy": share(alike & binary),
        }
        return Scores(metrics, [{"right": hit} for hit in right])


@dataclass(frozen=True)
class Options(Task):
    """Multiple choice, of prepared sets that say which options a question has.

    Attributes:
        word: `word(question, options)`, what is asked.
        match: `match(true option, answer, options)`, whether a free answer is right.
    """

    word: Callable[[str, Sequence[str]], str] = mmau_prompt
    match: Callable[[str, str, Sequence[str]], bool] = lambda true, said, options: (
        (chosen := option_of(said, options)) is not None and options[chosen] == true
    )
    needs = "questions with options (prepared sets have them)"
    hows = ("generate", "choices")

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            about = asking.about.get(clip.path, {})
            # A clip of AVQA has several questions, each with options of its own.
            for i, told in enumerate(about.get("asked", [about])):
                if "choices" in told and i < len(clip.questions):
                    question, answer = clip.questions[i]
                    meta = {"choices": told["choices"], "group": told.get("task") or told.get("type", "")}
                    words = asking.about_question(self.word(question, told["choices"]))
                    yield one_row(clip, words, "options", answer, **meta)

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        choices = [meta_of(answer.row, "choices") for answer in answers]
        if scoring.how == "choices":
            right = [answer.said == answer.row.output for answer in answers]
        else:
            right = [self.match(a.row.output, a.said, given) for a, given in zip(answers, choices)]
        groups = by_group([str(answer.row.meta.get("group", "")) for answer in answers], right)
        chance = float(np.mean([1 / len(given) for given in choices]))
        metrics = _shares(right) | {"chance": chance}
        if scoring.how == "generate":
            metrics["no_option"] = float(np.mean([option_of(a.said, g) is None for a, g in zip(answers, choices)]))
        of_groups = {name: float(values.mean()) for name, values in groups.items() if name}
        found = Scores(
            metrics, [{"right": hit} for hit in right], per_class={"accuracy": of_groups} if of_groups else {}
        )
        return _with_calibration(found, answers, right, scoring)


@dataclass(frozen=True)
class Episodes(Task):
    """N labels, K examples of each, and a clip to name (APT, section V, B)."""

    needs = "labels, with more clips each than there are shots"
    hows = ("choices", "generate")
    options: ClassVar[Mapping[str, int]] = {"ways": 5, "shots": 5, "episodes": 500}

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        return few_shot(clips, FewShot(**asking.options), asking.seed)

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        choices = [meta_of(answer.row, "choices") for answer in answers]
        chosen = [_chosen(answer, given, scoring) for answer, given in zip(answers, choices)]
        right = [answer.row.output == name for answer, name in zip(answers, chosen)]
        mean, half = mean_interval(right)
        labels = by_group([answer.row.output for answer in answers], right)
        metrics = {"accuracy": mean, "interval": half, "chance": float(np.mean([1 / len(given) for given in choices]))}
        rows = [{"right": hit, "chosen": name} for hit, name in zip(right, chosen)]
        of_labels = {name: float(values.mean()) for name, values in labels.items()}
        return _with_calibration(Scores(metrics, rows, per_class={"accuracy": of_labels}), answers, right, scoring)


@dataclass(frozen=True)
class Reasons(Task):
    """Natural language audio reasoning about two recordings (APT, section V, C)."""

    needs = "events (label, onset, offset)"
    hows = ("generate",)
    options: ClassVar[Mapping[str, int]] = {"pairs": 100, "questions": 5}

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        return reasoning(clips, Reasoning(**asking.options), asking.seed, write_by_rule)

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        right = [short_match(answer.row.output, answer.said) for answer in answers]
        kinds = by_group([_kind(answer.row.output) for answer in answers], right)
        of_kinds = {name: float(values.mean()) for name, values in kinds.items()}
        return Scores(_shares(right), [{"right": hit} for hit in right], per_class={"accuracy": of_kinds})


def _kind(answer: str) -> str:
    """What sort of answer a question wants."""
    true = normal(answer)
    sorts = {"yes": "yes or no", "no": "yes or no", "first": "which", "second": "which", "both": "which"}
    return sorts.get(true, "unanswerable" if true == "unknown" else "number" if true.isdigit() else "word")


def _chosen(answer: Answer, choices: Sequence[str], scoring: Scoring) -> str:
    if scoring.how == "choices":
        return answer.said
    option = option_of(answer.said, choices)
    return "" if option is None else choices[option]


def _shares(right: Sequence[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"accuracy": float(np.mean(right)), "accuracy_low": low, "accuracy_high": high}


def _with_calibration(found: Scores, answers: Sequence[Answer], right: Sequence[bool], scoring: Scoring) -> Scores:
    """How sure the model was of what it chose, where it chose."""
    told = [(answer, hit) for answer, hit in zip(answers, right) if answer.scores]
    if scoring.how == "choices" and told:
        powers = [np.exp(np.array(list(answer.scores.values()))) for answer, _ in told]
        found.calibration = calibration([float(p.max() / p.sum()) for p in powers], [hit for _, hit in told])
        found.sure = "probability among the choices"
        found.metrics["calibration_error"] = found.calibration.error
    return found
