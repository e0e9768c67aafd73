"""Tasks as a data source: a config names clips and tasks, the rows are written on first use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from alm_jax.core.errors import ConfigError
from alm_jax.data.composed import Scenes
from alm_jax.data.endpoint import Endpoint
from alm_jax.data.tasks.asked import AskedWriter
from alm_jax.data.tasks.audiotia import AskedDescriptions, Describe, described_by_rule, text_rows, with_captions
from alm_jax.data.tasks.clips import LabelledClip, read_clips
from alm_jax.data.tasks.reasoning import Writer
from alm_jax.data.tasks.registry import TaskConfig, check_tasks, make_rows, write_rows
from alm_jax.data.tasks.rules import write_by_rule

RULES = "rules"
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Tasks:
    """Rows of tasks about labelled clips (`data.tasks`), instead of a file of rows.

    Attributes:
        clips: a manifest or a folder (`tasks.clips.read_clips`), or scenes to compose.
        tasks: names in `tasks.registry.TASKS`. options: of those about several clips.
        split: which clips of the manifest; scenes say themselves which clips they are composed from.
        seed: of wording, and of what is asked about.
        writer, model: who writes NLAR's questions: `rules`, or the URL of an OpenAI-compatible endpoint and its model.
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
        check_tasks(self.tasks)
        if self.tag and not self.captions:
            raise ConfigError(f"tag {self.tag!r} is of rows with captions: set captions, or leave it out")
        make_writer(self.writer, self.model, Path())

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
        with FileLock(folder / ".lock"):  # two runs may want the same rows at once
            if not rows.is_file():
                writer = make_writer(self.writer, self.model, folder / "journal.jsonl", progress)
                dataset = "scenes" if isinstance(self.clips, Scenes) else Path(self.clips).stem
                if self.captions:
                    describe = make_describer(self.writer, self.model, folder / "journal.jsonl", progress)
                    clips = with_captions(clips, describe, self.seed)
                made = make_rows(clips, self.tasks, self.options, self.seed, dataset=dataset, writer=writer)
                write_rows(rows, text_rows(made, clips, self.tag) if self.captions else made)
        return rows

    def _digest(self, clips: list[LabelledClip]) -> str:
        told = (self.tasks, self.options, self.seed, self.writer, self.model, clips)
        told += ((self.captions, self.tag),) if self.captions else ()
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def make_writer(
    writer: str, model: str, journal: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Writer:
    """The writer of NLAR's questions: `rules`, or the URL of an endpoint that serves a model.

    The endpoint's key, if it wants one, stands in the environment (`OPENAI_API_KEY`).

    Raises:
        ConfigError: neither, or a URL without a model.
    """
    if writer == RULES:
        if model:
            raise ConfigError(f"model {model} is named, and the writer is rules; give the URL that serves it as writer")
        return write_by_rule
    endpoint = Endpoint(writer, model, key=os.environ.get(KEY_VARIABLE, ""))
    return AskedWriter(endpoint, journal, progress=progress)


def make_describer(
    writer: str, model: str, journal: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Describe:
    """Who describes clips that have labels and no caption: see `make_writer`."""
    if writer == RULES:
        return described_by_rule
    return AskedDescriptions(Endpoint(writer, model, key=os.environ.get(KEY_VARIABLE, "")), journal, progress=progress)
