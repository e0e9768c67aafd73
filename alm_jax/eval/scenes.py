"""Scores on composed scenes: each kind of question by its own closed-form score (`data.questions.score`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alm_jax.data.questions import majority_answers, score
from alm_jax.data.rows import AudioRow, RowSet, read_rows
from alm_jax.eval.answers import answer_rows, features_of, mean
from alm_jax.infer.loaded import LoadedModel


@dataclass(frozen=True)
class KindScore:
    """Mean scores in [0, 1] of one kind of question, by who answers.

    Attributes:
        kind: of question. rows: how many. scores: `{answerer: mean score}`.
    """

    kind: str
    rows: int
    scores: Mapping[str, float]


def score_scenes(
    models: Mapping[str, LoadedModel],
    rows_path: str | Path,
    train_rows: Iterable[AudioRow],
    *,
    kinds: Sequence[str],
    per_kind: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[list[KindScore], list[dict]]:
    """Compare models with each other and with the answer most frequent in training.

    Args:
        models: by the name that the table gives them; they share one encoder and front end.
        rows_path: rows that `data.scenes.write_scenes` wrote. train_rows: those trained on.
        kinds: of question to score. per_kind: at most so many rows of each, the first ones.
        progress: called with (model, done, all).

    Returns:
        (scores by kind, one record a row: kind, clip, instruction, true output and everyone's answer).
    """
    rows = read_rows(rows_path)
    chosen = [i for kind in kinds for i in _of_kind(rows, kind)[:per_kind]]
    asked = [rows[i] for i in chosen]
    features = features_of(next(iter(models.values())), rows, chosen)
    tokenizer = next(iter(models.values())).tokenizer
    longest = max((len(tokenizer.encode(row.output)) for row in asked), default=1) + 2  # no longer answer is right
    answers: dict[str, list[str]] = {}
    for name, model in models.items():
        tell = lambda done, total, name=name: progress(name, done, total)
        answers[name] = answer_rows(model, asked, features, max_new_tokens=longest, progress=tell)
    usual = majority_answers([{"task": row.task, "output": row.output} for row in train_rows])
    answers["majority"] = [usual.get(row.task, "") for row in asked]
    scores = {
        name: [score(row.task, text, {"meta": dict(row.meta)}) for row, text in zip(asked, texts)]
        for name, texts in answers.items()
    }
    table = []
    for kind in kinds:
        mine = [j for j, row in enumerate(asked) if row.task == kind]
        if mine:
            table.append(KindScore(kind, len(mine), {name: mean([s[j] for j in mine]) for name, s in scores.items()}))
    records = [
        {
            "kind": row.task,
            "clip": row.audio_id,
            "instruction": row.instruction,
            "output": row.output,
            "answers": {name: texts[j] for name, texts in answers.items()},
            "scores": {name: values[j] for name, values in scores.items()},
        }
        for j, row in enumerate(asked)
    ]
    return table, records


def _of_kind(rows: RowSet, kind: str) -> list[int]:
    return [i for i in range(len(rows)) if rows[i].task == kind]
