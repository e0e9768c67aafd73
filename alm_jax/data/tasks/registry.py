"""The tasks by name, and their rows written to a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.files import new_file
from alm_jax.data.endpoint import Asker
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks import ltu, single
from alm_jax.data.tasks.asked import AskedWriter
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.few_shot import FewShot, few_shot
from alm_jax.data.tasks.open_ended import TASK as OPEN_ENDED
from alm_jax.data.tasks.open_ended import OpenEnded, open_ended
from alm_jax.data.tasks.reasoning import Reasoning, reasoning
from alm_jax.data.tasks.rules import write_by_rule


@dataclass(frozen=True)
class TaskConfig:
    """What tasks leave open.

    Attributes:
        few_shot: how episodes are drawn.
        nlar: which pairs of recordings are asked about.
        open_ended: how many questions a language model writes, and which are kept.
        closed_ended: share of rows of closed-ended tasks that begin with `Closed-ended question: ` (LTU's last stage:
            0.5).
    """

    few_shot: FewShot = field(default_factory=FewShot)
    nlar: Reasoning = field(default_factory=Reasoning)
    open_ended: OpenEnded = field(default_factory=OpenEnded)
    closed_ended: float = 0.0

    def __post_init__(self) -> None:
        ltu.check_share(self.closed_ended, "closed_ended")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        formulate: `formulate(clips, config, seed, ask)` gives its rows; `ask` is a language model, or None.
        needs: what clips must have for it, in words.
        closed_ended: its answers have a fixed format.
        asks: it can't do without a language model.
    """

    formulate: Callable[[Sequence[LabelledClip], TaskConfig, int, Asker | None], Iterator[AudioRow]]
    needs: str
    closed_ended: bool = True
    asks: bool = False


def _single(name: str, asked: single.Ask, needs: str, **options: bool) -> Task:
    return Task(lambda clips, config, seed, ask: single.rows_of(asked, name, clips, seed), needs, **options)


def _nlar(clips: Sequence[LabelledClip], config: TaskConfig, seed: int, ask: Asker | None) -> Iterator[AudioRow]:
    return reasoning(clips, config.nlar, seed, AskedWriter(ask) if ask else write_by_rule)


_EVENTS = "events (label, onset, offset)"
_LTU_FEATURES = "ltu_features"
TASKS: dict[str, Task] = {
    "tagging": _single("tagging", single.tagging, "labels"),
    "captioning": _single("captioning", single.captioning, "captions"),
    "answering": _single("answering", single.answering, "questions with answers", closed_ended=False),
    "detection": _single("detection", single.detection, _EVENTS),
    "retrieval": _single("retrieval", single.retrieval, _EVENTS),
    "counting": _single("counting", single.counting, f"{_EVENTS} that can be counted"),
    "few_shot": Task(
        lambda clips, config, seed, ask: few_shot(clips, config.few_shot, seed), "labels", closed_ended=False
    ),
    "nlar": Task(_nlar, _EVENTS, closed_ended=False),
    "ltu_classification": _single("ltu_classification", ltu.classification, "labels"),
    _LTU_FEATURES: Task(
        lambda clips, config, seed, ask: ltu.features(clips, seed, ask, _LTU_FEATURES),
        "labels, and events with features or a language model that describes them (--writer)",
    ),
    "ltu_captioning": _single("ltu_captioning", ltu.captioning, "captions"),
    "ltu_temporal": _single("ltu_temporal", ltu.temporal, _EVENTS),
    OPEN_ENDED: Task(
        lambda clips, config, seed, ask: open_ended(clips, config.open_ended, seed, ask),
        "labels, events or captions",
        closed_ended=False,
        asks=True,
    ),
}


def check_tasks(names: Sequence[str], asked: bool = True) -> None:
    """Raise ConfigError unless all are in `TASKS`, and there is one at least.

    Args:
        asked: there is a language model, which some need.
    """
    if not names or set(names) - set(TASKS):
        unknown = [name for name in names if name not in TASKS]
        raise ConfigError(f"task {', '.join(unknown) or 'missing'}; expected some of {', '.join(TASKS)}")
    if lacking := [name for name in names if TASKS[name].asks and not asked]:
        raise ConfigError(f"task {lacking[0]} is written by a language model, and the writer is rules: name one")


def make_rows(
    clips: Sequence[LabelledClip],
    tasks: Iterable[str],
    config: TaskConfig = TaskConfig(),
    seed: int = 0,
    *,
    dataset: str = "",
    ask: Asker | None = None,
) -> Iterator[AudioRow]:
    """Rows of each task in turn: a pure function of its arguments (and of what a language model said).

    Args:
        tasks: names in `TASKS`. dataset: what rows call the collection.
        ask: a language model that writes what else is written by rule, or not at all.

    Raises:
        ConfigError: a task needs a language model. DataError: no clip has what a task needs, or too few have.
        EndpointError: the model does not answer.
    """
    tasks = list(tasks)
    check_tasks(tasks, ask is not None)
    for name in tasks:
        row = None
        rows = TASKS[name].formulate(clips, config, seed, ask)
        share = config.closed_ended if TASKS[name].closed_ended else 0.0
        for row in ltu.closed_ended(rows, share, seed) if share else rows:
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
    locate = partial(_located, path.parent.resolve())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as written, written.open("w", encoding="utf-8") as file:
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
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from None
    return dict(counts)


def _located(folder: Path, clip: str) -> str:
    whole = Path(clip).resolve()
    return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)
