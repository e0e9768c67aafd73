"""Collections of labelled clips: a folder with one sub-folder a label, or a CSV; and the clips that are shipped."""

import csv
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from alm_jax.core.errors import DataError

AUDIO_SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .m4a .webm".split())
MANIFEST_NAME = "manifest.csv"

# Answers are lists such as `dog bark: [0.0s-1.0s]; siren: ...`: a phrase may not hold what separates their items.
_RESERVED = re.compile(r"[;:\[\]]|->|, (then|joined by|with)\b")


@dataclass(frozen=True)
class Clip:
    """One labelled recording.

    Attributes:
      path: the audio file.
      label: what sounds in it, as the collection writes it (`dog_bark`).
      phrase: the same in words (`dog bark`), as questions and answers write it.
      group: where it was recorded or published (a package, an uploader); empty if unknown.
      seconds: its length, where the collection says so.
      split: the part of the collection that it was assigned to; empty if none.
    """

    path: Path
    label: str
    phrase: str
    group: str = ""
    seconds: float | None = None
    split: str = ""


def shipped_sounds() -> Path:
    """The folder of freely licensed clips inside the package, with `manifest.csv` and `ATTRIBUTION.md`."""
    return Path(__file__).parent / "sounds"


def choose_clips(source: str | Path, split: Literal["all", "train", "unseen"] = "all") -> tuple[list[Clip], list[str]]:
    """The clips of a collection, or of its part to `train` on, or its `unseen` part (`split_clips`).

    Args:
      source: see `read_manifest`; `shipped` stands for the clips inside the package.

    Returns:
      The clips, and the phrases of all labels of the collection, sorted: from these come the sounds that are asked for
      and not there, whichever part the scenes are made of.

    Raises:
      DataError: as `read_manifest`; or the part is empty.
    """
    clips = read_manifest(shipped_sounds() if source == "shipped" else source)
    vocabulary = sorted({clip.phrase for clip in clips})
    if split == "all":
        return clips, vocabulary
    part = split_clips(clips)[split == "unseen"]
    if not part:
        raise DataError(
            f"{source}: no clip is left for split {split}; expected labels that have several clips, or a column split "
            "that says unseen of some and not of all"
        )
    return part, vocabulary


def read_manifest(path: str | Path) -> list[Clip]:
    """Reads a collection of labelled clips, sorted by label and path.

    Args:
      path: a CSV with at least the columns `file` (relative to the CSV) and `label`, and maybe `phrase`, `package` or
        `group`, `seconds`, `split`; a folder that holds such a CSV as `manifest.csv`; or a folder whose sub-folders are
        named after the label of the audio files in them.

    Raises:
      DataError: nothing there, no audio, a missing column or file, or two labels that read alike.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        listing = path / MANIFEST_NAME
        clips = _read_csv(listing) if listing.is_file() else _read_folder(path)
    elif path.is_file():
        clips = _read_csv(path)
    else:
        raise DataError(
            f"{path}: no such file or folder; give a folder with one sub-folder of audio a label, a CSV with columns "
            "file,label, or `shipped` for the clips of this package"
        )
    _check_phrases(clips, path)
    return sorted(clips, key=lambda clip: (clip.label, str(clip.path)))


def split_clips(clips: Iterable[Clip], *, held_out: str = "unseen", seed: int = 0) -> tuple[list[Clip], list[Clip]]:
    """Splits clips into those to train on and unseen ones, so that every label keeps a clip to train on.

    Where the collection assigns splits, the clips whose split is `held_out` are the unseen ones. Otherwise each label
    with two clips or more gives up all clips of its smallest group if it has several groups, since clips of one origin
    share microphones and codecs that give them away; else a fifth of its clips, at least one. What one label gives up
    does not depend on the other labels.

    Returns:
      The clips to train on and the unseen ones, each in the order given.
    """
    clips = list(clips)
    if any(clip.split for clip in clips):
        unseen = {clip for clip in clips if clip.split == held_out}
    else:
        by_label = defaultdict(list)
        for clip in clips:
            by_label[clip.label].append(clip)
        unseen = {clip for group in by_label.values() for clip in _give_up(group, seed)}
    return [clip for clip in clips if clip not in unseen], [clip for clip in clips if clip in unseen]


def phrase_of(label: str) -> str:
    """A label in words: `Dog_Bark` reads `dog bark`."""
    return " ".join(re.split(r"[\s_\-]+", label.strip())).strip().lower()


def _give_up(clips: list[Clip], seed: int) -> list[Clip]:
    if len(clips) < 2:
        return []
    clips = sorted(clips, key=lambda clip: str(clip.path))
    rng = np.random.default_rng([seed, zlib.crc32(clips[0].label.encode())])
    groups = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(clip)
    if len(groups) > 1:
        smallest = min(map(len, groups.values()))
        ties = [name for name in sorted(groups) if len(groups[name]) == smallest]
        return groups[ties[rng.integers(len(ties))]]
    picked = rng.permutation(len(clips))[: max(1, len(clips) // 5)]
    return [clips[i] for i in picked]


def _read_folder(root: Path) -> list[Clip]:
    clips = [
        Clip(path=file, label=folder.name, phrase=phrase_of(folder.name))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]
    if not clips:
        raise DataError(
            f"{root}: no audio in its sub-folders; expected one sub-folder a label with files of type "
            f"{' '.join(sorted(AUDIO_SUFFIXES))}, or a {MANIFEST_NAME}"
        )
    return clips


def _read_csv(path: Path) -> list[Clip]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or []
            missing = [name for name in ("file", "label") if name not in columns]
            if missing:
                raise DataError(
                    f"{path}: no column {' or '.join(missing)}; expected at least file,label, found "
                    f"{','.join(columns) or 'an empty file'}"
                )
            clips = [_read_row(row, path, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV ({error}); expected columns file,label") from error
    if not clips:
        raise DataError(f"{path}: no rows; expected one line a clip with file,label")
    return clips


def _read_row(row: dict, path: Path, line: int) -> Clip:
    def cell(name: str) -> str:
        return (row.get(name) or "").strip()

    where = f"{path} line {line}"
    for name in ("file", "label"):
        if not cell(name):
            raise DataError(f"{where}: empty {name}; expected file,label")
    file = path.parent / cell("file")
    if not file.is_file():
        raise DataError(f"{where}: {file} does not exist; paths are relative to the CSV")
    try:
        seconds = float(cell("seconds")) if cell("seconds") else None
    except ValueError as error:
        raise DataError(f"{where}: seconds is {cell('seconds')!r}; expected a number or nothing") from error
    return Clip(
        path=file,
        label=cell("label"),
        phrase=cell("phrase") or phrase_of(cell("label")),
        group=cell("package") or cell("group"),
        seconds=seconds,
        split=cell("split"),
    )


def _check_phrases(clips: list[Clip], path: Path) -> None:
    """One phrase a label and one label a phrase: else counts and lists of labels would be wrong."""
    phrases: dict[str, str] = {}
    labels: dict[str, str] = {}
    for clip in clips:
        if not clip.phrase or _RESERVED.search(clip.phrase):
            raise DataError(
                f"{path}: label {clip.label!r} reads {clip.phrase!r}, which may not be empty or hold ; : [ ] -> "
                "as answers use them; give it another name in a column phrase"
            )
        if phrases.setdefault(clip.label, clip.phrase) != clip.phrase:
            raise DataError(
                f"{path}: label {clip.label!r} has two phrases, {phrases[clip.label]!r} and {clip.phrase!r}; "
                "give it one"
            )
        if labels.setdefault(clip.phrase, clip.label) != clip.label:
            raise DataError(
                f"{path}: labels {labels[clip.phrase]!r} and {clip.label!r} both read {clip.phrase!r}; merge them or "
                "give one another phrase"
            )
