"""Composed scenes as a data source: a config names how many and of what, the files are written on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alm_jax.core.errors import ConfigError
from alm_jax.data.manifest import choose_clips
from alm_jax.data.questions import QUESTION_KINDS
from alm_jax.data.scenes import SceneConfig, write_scenes

_ROWS = 2  # of the form of rows, so that older ones are written anew
_SHARE = 128  # scenes that are composed as soon as a process has started


@dataclass(frozen=True)
class Scenes:
    """Rows about scenes composed from labelled clips (`data.scenes`), instead of a file of rows.

    Attributes:
        n: number of scenes. seed: scene i depends on it and on i alone.
        clips: a folder or CSV of labelled clips; `shipped` stands for those inside the package.
        split: which clips: `all`, those to `train` on, or the `unseen` ones of labels that have several.
        scene: how scenes are composed. kinds: which questions are asked about each.
        repeat: how often an epoch holds them.
    """

    n: int
    seed: int = 0
    clips: str = "shipped"
    split: Literal["all", "train", "unseen"] = "train"
    scene: SceneConfig = field(default_factory=SceneConfig)
    kinds: tuple[str, ...] = tuple(QUESTION_KINDS)
    repeat: int = 1

    def __post_init__(self):
        if self.n < 1:
            raise ConfigError(f"Scenes.n is {self.n}; expected at least 1 scene")
        if self.seed < 0:
            raise ConfigError(f"Scenes.seed is {self.seed}; expected 0 or more")
        if unknown := sorted(set(self.kinds) - set(QUESTION_KINDS)):
            raise ConfigError(f"Scenes.kinds: {', '.join(unknown)}; expected some of {', '.join(QUESTION_KINDS)}")

    def write(self, cache: str | Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> Path:
        """Write the scenes under `cache`, where equal ones are found again; the path of the rows about them.

        Args:
            workers: processes at most; few scenes are composed in this one.
            progress: called with (scenes done, all).

        Raises:
            DataError: the clips cannot be used, or the disk not written.
        """
        from filelock import FileLock

        clips, vocabulary = choose_clips(self.clips, self.split)
        made_of = [(clip.label, clip.phrase, clip.path.name, clip.path.stat().st_size) for clip in clips]
        # Stages that ask other questions about the same scenes hear the same files.
        folder = Path(cache) / "scenes" / _digest((self.n, self.seed, self.scene, made_of))
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / f"rows-{_digest((_ROWS, self.kinds, vocabulary))}.json"
        with FileLock(folder / ".lock"):  # two runs may want the same scenes at once
            if not rows.is_file():
                options = {"kinds": self.kinds, "vocabulary": vocabulary, "progress": progress}
                options["workers"] = min(workers, max(1, self.n // _SHARE))
                write_scenes(folder, clips, self.scene, self.n, self.seed, **options).replace(rows)
        return rows


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
