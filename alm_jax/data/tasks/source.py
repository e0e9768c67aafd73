"""Tasks as a data source: a config names clips and tasks, the rows are written on first use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from alm_jax.core.errors import ConfigError
from alm_jax.data.batch_files import BatchAsker
from alm_jax.data.composed import Scenes
from alm_jax.data.endpoint import Asker, Endpoint, EndpointAsker
from alm_jax.data.tasks.audiotia import AskedDescriptions, Describe, described_by_rule, text_rows, with_captions
from alm_jax.data.tasks.clips import LabelledClip, read_clips
from alm_jax.data.tasks.registry import TaskConfig, check_tasks, make_rows, write_rows

RULES, BATCH = "rules", "batch"
JOURNAL = ".journal.jsonl"
"""Ending of the file where a language model's answers are kept, behind the name of the rows' file."""
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Tasks:
    """Rows of tasks about labelled clips (`data.tasks`), instead of a file of rows.

    Attributes:
        clips: a manifest or a folder (`tasks.clips.read_clips`), or scenes to compose.
        tasks: names in `tasks.registry.TASKS`. options: what they leave open.
        split: which clips of the manifest; scenes say themselves which clips they are composed from.
        seed: of wording, and of what is asked about.
        writer, model: who writes open-ended and NLAR's questions, and describes sounds: `rules`, or the URL of an
            OpenAI-compatible endpoint and its model.
        repeat: how often an epoch holds the rows.
        captions: whether rows have a caption of each clip, for training on text alone: the manifest's, or a description
            of its labels by the writer. tag: before each question, in brackets (`tasks.audiotia.DATA_SETS`).
    """

    clips: str | Scenes
    tasks: tuple[str, ...]
    options: TaskConfig = field(default_factory=TaskConfig)
    split: str = "all"
    seed: int = 0
    writer: str = RULES
    model: str = ""
    repeat: int = 1
    captions: bool = False
    tag: str = ""

    def __post_init__(self) -> None:
        check_tasks(self.tasks, self.writer != RULES)
        if self.tag and not self.captions:
            raise ConfigError(f"tag {self.tag!r} is of rows with captions: set captions, or leave it out")
        if self.writer == BATCH:
            raise ConfigError(f"writer {BATCH} takes several rounds: write rows with alm tasks, and name their file")
        make_asker(self.writer, self.model, Path())

    def write(
        self, cache: str | Path, *, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Path:
        """Write the rows under `cache`, where equal ones are found again, and the scenes they are about; their path.

        Raises:
            DataError: the clips cannot be used for the tasks, or the disk not written. EndpointError: it fails.
        """
        from filelock import FileLock

        source, split = self.clips, self.split
        if isinstance(source, Scenes):
            source, split = source.write(cache, workers=workers, progress=progress).parent, "all"
        clips = read_clips(source, split=split, need_files=not self.captions)
        folder = Path(cache) / "tasks" / self._digest(clips)
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / "rows.jsonl"
        # Of all rows, so that a label is described once, and alike in every stage.
        journal = folder.parent / "journal.jsonl"
        asking = nullcontext() if self.writer == RULES else FileLock(f"{journal}.lock")
        with FileLock(folder / ".lock"):  # two runs may want the same rows at once
            if not rows.is_file():
                with asking:
                    ask = make_asker(self.writer, self.model, journal, progress=progress)
                    self._write(rows, clips, ask)
        return rows

    def _write(self, path: Path, clips: list[LabelledClip], ask: Asker | None) -> None:
        dataset = "scenes" if isinstance(self.clips, Scenes) else Path(self.clips).stem
        if self.captions:
            clips = with_captions(clips, describer(ask), self.seed)
        made = make_rows(clips, self.tasks, self.options, self.seed, dataset=dataset, ask=ask)
        write_rows(path, text_rows(made, clips, self.tag) if self.captions else made)

    def _digest(self, clips: list[LabelledClip]) -> str:
        told = (self.tasks, self.options, self.seed, self.writer, self.model, clips)
        told += ((self.captions, self.tag),) if self.captions else ()
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def make_asker(
    writer: str,
    model: str,
    journal: Path,
    *,
    answers: Sequence[Path] = (),
    workers: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Asker | None:
    """The language model that writes questions and descriptions; None where rules do.

    The endpoint's key, if it wants one, stands in the environment (`OPENAI_API_KEY`).

    Args:
        writer: `rules`; the URL of an endpoint that serves the model; or `batch`: requests are written beside the
            journal's file, and what a service answers is read from `answers`.
        workers: requests at once. progress: called with (prompts done, all).

    Raises:
        ConfigError: none of these, a model without a writer or the other way round, or answers without batches.
    """
    if answers and writer != BATCH:
        raise ConfigError(f"answers of a batch are given, and the writer is {writer}; expected {BATCH}")
    if writer == RULES:
        if model:
            raise ConfigError(f"model {model} is named, and the writer is rules; give the URL that serves it as writer")
        return None
    if writer == BATCH:
        if not model:
            raise ConfigError("the writer is batch, and no model is named: give the name of the one that answers")
        files = journal.with_name(f"{journal.name.removesuffix(JOURNAL)}.batch")
        return BatchAsker(model, journal, files, tuple(answers))
    endpoint = Endpoint(writer, model, key=os.environ.get(KEY_VARIABLE, ""))
    return EndpointAsker(endpoint, journal, workers=workers, progress=progress)


def describer(ask: Asker | None) -> Describe:
    """Who describes clips that have labels and no caption."""
    return described_by_rule if ask is None else AskedDescriptions(ask)
