"""The tasks by name, and their rows written to a file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks import single
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.few_shot import FewShot, few_shot
from alm_jax.data.tasks.reasoning import Reasoning, Writer, reasoning
from alm_jax.data.tasks.rules import write_by_rule


@dataclass(frozen=True)
class TaskConfig:
    """What tasks about several clips leave open.

    Attributes:
        few_shot: how episodes are drawn.
        nlar: which pairs of recordings are asked about.
    """

    few_shot: FewShot = field(default_factory=FewShot)
    nlar: Reasoning = field(default_factory=Reasoning)


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        formulate: `formulate(clips, config, seed, writer)` gives its rows; the writer is that of NLAR's questions.
        needs: what clips must have for it, in words.
    """

    formulate: Callable[[Sequence[LabelledClip], TaskConfig, int, Writer], Iterator[AudioRow]]
    needs: str


def _single(name: str, ask: single.Ask, needs: str) -> Task:
    return Task(lambda clips, config, seed, writer: single.rows_of(ask, name, clips, seed), needs)


TASKS: dict[str, Task] = {
    "tagging": _single("tagging", single.tagging, "labels"),
    "captioning": _single("captioning", single.captioning, "captions"),
    "answering": _single("answering", single.answering, "questions with answers"),
    "detection": _single("detection", single.detection, "events (label, onset, offset)"),
    "retrieval": _single("retrieval", single.retrieval, "events (label, onset, offset)"),
    "counting": _single("counting", single.counting, "events (label, onset, offset) that can be counted"),
    "few_shot": Task(lambda clips, config, seed, writer: few_shot(clips, config.few_shot, seed), "labels"),
    "nlar": Task(
        lambda clips, config, seed, writer: reasoning(clips, config.nlar, seed, writer), "events (label, onset, offset)"
    ),
}


def check_tasks(names: Sequence[str]) -> None:
    """Raise ConfigError unless all are in `TASKS`, and there is one at least."""
    if not names or set(names) - set(TASKS):
        unknown = [name for name in names if name not in TASKS]
        raise ConfigError(f"task {', '.join(unknown) or 'missing'}; expected some of {', '.join(TASKS)}")


def make_rows(
    clips: Sequence[LabelledClip],
    tasks: Iterable[str],
    config: TaskConfig = TaskConfig(),
    seed: int = 0,
    *,
    dataset: str = "",
    writer: Writer = write_by_rule,
) -> Iterator[AudioRow]:
    """Rows of each task in turn: a pure function of its arguments (and of a writer's journal).

    Args:
        tasks: names in `TASKS`. dataset: what rows call the collection.

    Raises:
        DataError: no clip has what a task needs, or too few have. Whatever a writer raises.
    """
    for name in tasks:
        row = None
        for row in TASKS[name].formulate(clips, config, seed, writer):
            yield replace(row, dataset=dataset)
        if row is None:
            raise DataError(f"task {name} needs clips with {TASKS[name].needs}; none of {len(clips)} has them")


def write_rows(path: str | Path, rows: Iterable[AudioRow]) -> dict[str, int]:
    """Write rows as JSON lines; the file appears whole or not at all.

    Clips below the file's folder are named relative to it, so that both may be moved; others by their whole path.

    Returns:
        How many rows there are of each task.

    Raises:
        DataError: the file cannot be written. Whatever making the rows raises.
    """
    path, counts = Path(path), Counter()
    partial_path = path.with_name(f".{path.name}.{os.getpid()}")
    locate = partial(_located, path.parent.resolve())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_path.open("w", encoding="utf-8") as file:
            for row in rows:
                clips = [locate(clip) for clip in row.clips]
                told = {
                    "instruction": row.instruction,
                    "input": row.input,
                    "audio_id": clips if len(clips) > 1 else "".join(clips),
                    **({"caption": row.captions if len(row.captions) > 1 else row.caption} if row.caption else {}),
                    "dataset": row.dataset,
                    "task": row.task,
                    "output": row.output,
                    "meta": dict(row.meta),
                }
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
                counts[row.task] += 1
        os.replace(partial_path, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from None
    finally:
        partial_path.unlink(missing_ok=True)
    return dict(counts)


def _located(folder: Path, clip: str) -> str:
    whole = Path(clip).resolve()
    return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)
