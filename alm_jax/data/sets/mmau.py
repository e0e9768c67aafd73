"""MMAU (Sakshi et al. 2024) and AIR-Bench (Yang et al. 2024): questions with choices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from alm_jax.data.sets.base import DataSet, Expected, Item, Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.tables import fields, read_json

_MMAU = {"test_mini": "mmau-test-mini.json", "test": "mmau-test.json"}
_AIR = {"foundation": "Foundation/Foundation_meta.json", "chat": "Chat/Chat_meta.json"}
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def _read_mmau(files: Files, report: Report) -> Iterator[Item]:
    for split, table in _MMAU.items():
        place = files.find(table)
        for where, row in read_json(files, place, report) if place else ():
            told = fields(row, ("id", "audio_id", "question"), where, report)
            choices = row.get("choices")
            if told is None or not isinstance(choices, list) or not choices:
                if told is not None:
                    report.add("broken row", where, "no choices")
                continue
            number, audio, question = told
            name = "/".join(part for part in PurePosixPath(audio).parts if part != ".")
            kept = ("task", "dataset", "category", "sub-category", "difficulty")
            # Answers to the full test are not published.
            answer = str(row.get("answer") or "")
            yield Item(
                id=number,
                split=split,
                audio=(name, PurePosixPath(audio).name),
                questions=((question, answer),) if answer else (),
                meta={"question": question, "choices": [str(choice) for choice in choices]}
                | {key: row[key] for key in kept if row.get(key)},
            )


def _read_air(files: Files, report: Report) -> Iterator[Item]:
    for split, table in _AIR.items():
        place = files.find(table)
        for where, row in read_json(files, place, report) if place else ():
            names = ("uniq_id", "path", "question", "answer_gt", "task_name", "dataset_name")
            told = fields(row, names, where, report)
            if told is None:
                continue
            number, name, question, answer, task, dataset = told
            choices = [str(row[choice]) for choice in _CHOICES if row.get(choice)]
            about = {"choices": choices, "task": task, "dataset": dataset, "about": row.get("meta_info")}
            yield Item(
                id=f"{split}/{number}",
                split=split,
                audio=(f"{split.title()}/{task}_{dataset}/{name}", f"{task}_{dataset}/{name}"),
                questions=((question, answer),),
                meta={key: value for key, value in about.items() if value},
            )


MMAU = DataSet(
    name="mmau",
    title="MMAU: questions with choices about sound, music and speech",
    url="https://github.com/Sakshi113/MMAU",
    licence="Apache 2.0 for questions; of each clip as its source has it",
    clips=10000,
    hours=None,
    gigabytes=None,
    splits=tuple(_MMAU),
    expected=(
        *(Expected(table, f"questions of {split}", group="tables") for split, table in _MMAU.items()),
        Expected("*.{audio}", "the clips"),
    ),
    read=_read_mmau,
    tests=tuple(_MMAU),
    owns_folder=False,
    note="answers to `test` are not published; meta holds the choices",
)

AIR_BENCH = DataSet(
    name="air_bench",
    title="AIR-Bench: questions with choices (foundation) and open ones (chat)",
    url="https://huggingface.co/datasets/qyang1021/AIR-Bench-Dataset",
    licence="CC BY-NC 4.0",
    clips=26000,
    hours=None,
    gigabytes=None,
    splits=tuple(_AIR),
    expected=(
        *(Expected(table, f"questions of {split}", group="tables") for split, table in _AIR.items()),
        Expected("*.{audio}", "the clips"),
    ),
    read=_read_air,
    tests=tuple(_AIR),
    note="meta holds choices, task and what is known of a clip; Audio_Grounding's clips are flac under names in wav",
)
