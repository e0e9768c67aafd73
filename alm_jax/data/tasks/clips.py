"""Labelled clips, which every task starts from, and the manifests that they are read from."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alm_jax.core.errors import DataError
from alm_jax.data.manifest import choose_clips
from alm_jax.data.questions import QUESTION_KINDS, acoustic_features, make_rows
from alm_jax.data.scenes import Scene, read_scenes
from alm_jax.data.sets.index import prepared_clips, prepared_folder

SCENES = "scenes.jsonl"
_ASKED = tuple(kind for kind in QUESTION_KINDS if kind not in ("events", "caption"))  # these are tasks of their own
_CAPTION_PREFIX = "Audio caption: "

# What published tables call the columns: Clotho (file_name, caption_1 to caption_5), Clotho-AQA (QuestionText),
# DESED and other event lists (filename, event_label), ESC-50 (filename, category).
_COLUMNS = {
    "file": ("file", "audio_id", "file_name", "filename", "path"),
    "label": ("phrase", "label", "event_label", "category"),
    "labels": ("labels",),
    "caption": ("caption", *(f"caption_{i}" for i in range(1, 6))),
    "onset": ("onset",),
    "offset": ("offset",),
    "confidence": ("confidence",),
    "level_db": ("level_db",),
    "question": ("question", "QuestionText"),
    "answer": ("answer",),
    "seconds": ("seconds",),
    "split": ("split",),
}
_FIELDS = ("audio_id", "labels", "captions", "events", "questions", "seconds", "split")
_EVENT_FIELDS = ("label", "onset", "offset", "confidence", "level_db", "features", "countable")


@dataclass(frozen=True)
class ClipEvent:
    """One sound as it is heard in a clip.

    Attributes:
        label: in words.
        onset, offset: seconds from the clip's start.
        confidence: of the annotation, 0 to 1.
        level_db: loudness (RMS, dB full scale), where it is known.
        features: how it sounds, in words.
        countable: it is one sound; several barks under one annotation are not, nor is rain.
    """

    label: str
    onset: float
    offset: float
    confidence: float = 1.0
    level_db: float | None = None
    features: tuple[str, ...] = ()
    countable: bool = True


@dataclass(frozen=True)
class LabelledClip:
    """A recording and what is known of it.

    Attributes:
        path: the audio file.
        labels: what is heard, in words.
        captions: descriptions, each of the whole clip.
        events: by onset.
        questions: (question, answer) pairs.
        seconds: its length, where the manifest says so.
        split: the part of the collection that it was assigned to; empty if none.
    """

    path: Path
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    events: tuple[ClipEvent, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    split: str = ""

    @property
    def name(self) -> str:
        """Folder and file, which stay the same where a collection is moved as a whole."""
        return f"{self.path.parent.name}/{self.path.name}"


def read_clips(
    source: str | Path,
    *,
    split: str = "all",
    min_confidence: float = 0.0,
    skip_missing: bool = False,
    need_files: bool = True,
) -> list[LabelledClip]:
    """Read labelled clips.

    Args:
        source: a folder that `alm scenes` wrote, or its `scenes.jsonl`; a JSON array, or JSON lines, of objects with
            `audio_id` and any of `labels`, `captions`, `events` (each `label`, `onset`, `offset` and maybe
            `confidence`, `level_db`, `features`, `countable`), `questions` (each `question`, `answer`), `seconds` and
            `split`; a CSV or TSV with a column `file` and any of `label`, `labels` (parted by `;`), `caption`, `onset`
            and `offset`, `question` and `answer`, one line a label, caption, event or question; a set that `alm data
            prepare` wrote, here or at a URL; a folder with one sub-folder a label; or `shipped`. Paths are relative to
            the file that names them.
        split: the clips of one split (of a prepared set, also of several joined by `+`); `all` takes every one.
            Folders of clips have the splits `train` and `unseen` (`manifest.split_clips`).
        min_confidence: events below it, and labels known from them alone, are left out.
        skip_missing: leave out clips whose file is not there.
        need_files: whether one has to be; not where texts are all that is read.

    Raises:
        DataError: unreadable, malformed, no clip in the split, or files that are not there.
    """
    if source != "shipped" and prepared_folder(source) is not None:
        return [_sure(_of_prepared(*clip), min_confidence) for clip in prepared_clips(source, split)]
    path = Path(source).expanduser()
    if path.is_dir() and (path / SCENES).is_file():
        path = path / SCENES
    if source == "shipped" or not path.is_file():
        chosen, _ = choose_clips(source, "all" if split == "all" else _folder_split(source, split))
        return [LabelledClip(clip.path, labels=(clip.phrase,), seconds=clip.seconds) for clip in chosen]
    if path.name == SCENES:
        clips = [_sure(clip, min_confidence) for clip in _of_scenes(path)]
    else:
        read = _read_json if path.suffix in (".json", ".jsonl") else _read_table
        clips = [_sure(clip, min_confidence) for clip in read(path)]
    if split != "all":
        clips = [clip for clip in clips if clip.split == split]
    if not clips:
        raise DataError(f"{path}: no clips" + ("" if split == "all" else f" whose split is {split}"))
    missing = {clip.path for clip in clips if not clip.path.is_file()} if need_files else set()
    if missing and not (skip_missing and len(missing) < len(clips)):
        raise DataError(
            f"{path}: {len(missing)} of {len(clips)} clips are not there, {min(missing)} for one; paths are relative "
            "to the manifest (--skip-missing leaves some missing ones out)"
        )
    return [clip for clip in clips if clip.path not in missing]


def clip_of_scene(path: Path, scene: Scene, vocabulary: list[str]) -> LabelledClip:
    """A composed scene as a labelled clip: its events with measured features, and a caption and questions about it.

    Args:
        vocabulary: phrases that questions about absent sounds choose from.
    """
    loudest = max(event.level_db for event in scene.events)
    rows = make_rows(scene, "", ("caption", *_ASKED), scene.seed, vocabulary=vocabulary)
    return LabelledClip(
        path=path,
        labels=tuple(dict.fromkeys(event.phrase for event in scene.events)),
        captions=tuple(row["output"].removeprefix(_CAPTION_PREFIX) for row in rows if row["task"] == "caption"),
        events=tuple(
            ClipEvent(
                label=event.phrase,
                onset=event.onset,
                offset=event.offset,
                level_db=event.level_db,
                features=tuple(acoustic_features(event, loudest)),
                countable=event.countable,
            )
            for event in scene.events
        ),
        questions=tuple((row["instruction"], row["output"]) for row in rows if row["task"] != "caption"),
        seconds=scene.seconds,
    )


def _of_scenes(path: Path) -> list[LabelledClip]:
    scenes = read_scenes(path)
    vocabulary = sorted({event.phrase for _, scene in scenes for event in scene.events})
    return [clip_of_scene(path.parent / audio_id, scene, vocabulary) for audio_id, scene in scenes]


def _of_prepared(path: Path, told: Mapping[str, Any]) -> LabelledClip:
    return LabelledClip(
        path=path,
        labels=tuple(told.get("labels", ())),
        captions=tuple(told.get("captions", ())),
        events=tuple(ClipEvent(*event) for event in told.get("events", ())),
        questions=tuple((question, answer) for question, answer in told.get("questions", ())),
        seconds=told["seconds"],
        split=told["split"],
    )


def _folder_split(source: str | Path, split: str) -> Any:
    if split not in ("train", "unseen"):
        raise DataError(f"{source}: no split {split}; clips in folders have all, train and unseen")
    return split


def _sure(clip: LabelledClip, min_confidence: float) -> LabelledClip:
    """The clip with its sure events alone, by onset; labels that no event bears are the manifest's own and stay."""
    sure = tuple(sorted((e for e in clip.events if e.confidence >= min_confidence), key=lambda e: (e.onset, e.label)))
    unsure = {event.label for event in clip.events} - {event.label for event in sure}
    labels = [label for label in clip.labels if label not in unsure] + [event.label for event in sure]
    return replace(clip, events=sure, labels=tuple(dict.fromkeys(labels)))


def _read_json(path: Path) -> Iterator[LabelledClip]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            records = [(f"{path}[{i}]", record) for i, record in enumerate(json.loads(text))]
        else:
            lines = [(f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
            records = [(where, json.loads(line)) for where, line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON array or JSON lines of clips ({error})") from None
    for where, record in records:
        clip = _object(record, _FIELDS, where)
        if not clip.get("audio_id"):
            raise DataError(f"{where}: no audio_id; expected the path of a clip")
        yield LabelledClip(
            path=path.parent / _text(clip["audio_id"], f"{where}.audio_id"),
            labels=tuple(_label(t, f"{where}.labels") for t in _list(clip.get("labels"), f"{where}.labels")),
            captions=tuple(_text(t, f"{where}.captions") for t in _list(clip.get("captions"), f"{where}.captions")),
            events=_each(clip, "events", where, lambda e, at: _event(_object(e, _EVENT_FIELDS, at), at)),
            questions=_each(clip, "questions", where, _question),
            seconds=_number(clip.get("seconds"), f"{where}.seconds", default=None),
            split=_text(clip.get("split", ""), f"{where}.split"),
        )


def _each(clip: Mapping[str, Any], field: str, where: str, read: Callable[[Any, str], Any]) -> tuple:
    items = _list(clip.get(field), f"{where}.{field}")
    return tuple(read(item, f"{where}.{field}[{i}]") for i, item in enumerate(items))


def _event(event: Mapping[str, Any], where: str) -> ClipEvent:
    onset, offset = (_number(event.get(name), f"{where}.{name}") for name in ("onset", "offset"))
    confidence = _number(event.get("confidence"), f"{where}.confidence", default=1.0)
    if not 0 <= onset < offset:
        raise DataError(f"{where}: lasts from {onset:g} to {offset:g} s; expected an offset after its onset")
    if not 0 <= confidence <= 1:
        raise DataError(f"{where}.confidence is {confidence:g}; expected 0 to 1")
    if not isinstance(event.get("countable", True), bool):
        raise DataError(f"{where}.countable is {event['countable']!r}; expected true or false")
    return ClipEvent(
        label=_label(event.get("label", ""), f"{where}.label"),
        onset=onset,
        offset=offset,
        confidence=confidence,
        level_db=_number(event.get("level_db"), f"{where}.level_db", default=None),
        features=tuple(_text(word, f"{where}.features") for word in _list(event.get("features"), f"{where}.features")),
        countable=event.get("countable", True),
    )


def _question(item: Any, where: str) -> tuple[str, str]:
    pair = _object(item, ("question", "answer"), where)
    question, answer = (_text(pair.get(name, ""), f"{where}.{name}") for name in ("question", "answer"))
    if not (question and answer):
        raise DataError(f"{where}: expected a question and an answer, neither empty")
    return question, answer


def _read_table(path: Path) -> list[LabelledClip]:
    """Lines about one file are one clip, in the order of their first lines."""
    clips: dict[str, LabelledClip] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            header = handle.readline()
            handle.seek(0)
            reader = csv.DictReader(handle, delimiter="\t" if "\t" in header else ",")
            _check_columns(path, reader.fieldnames or [])
            for line in reader:
                where = f"{path} line {reader.line_num}"
                found = _cells(line)
                if not found["file"]:
                    raise DataError(f"{where}: no file; expected the path of a clip")
                file = found["file"][0]
                clips[file] = _add(clips.get(file, LabelledClip(path.parent / file)), found, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV or TSV of clips ({error})") from None
    return list(clips.values())


def _check_columns(path: Path, columns: list[str]) -> None:
    known = {name for name, spellings in _COLUMNS.items() if set(spellings) & set(columns)}
    if "file" not in known or not known & {"label", "labels", "caption", "question"}:
        raise DataError(
            f"{path}: columns {','.join(map(str, columns)) or 'are missing'}; expected file and any of label, labels, "
            "caption, question and answer, and for events onset and offset"
        )


def _cells(line: Mapping[str, str | None]) -> dict[str, list[str]]:
    """What a line holds, by our name of its columns, empty cells left out."""
    return {
        name: [cell.strip() for column in spellings if (cell := line.get(column) or "").strip()]
        for name, spellings in _COLUMNS.items()
    }


def _add(clip: LabelledClip, found: Mapping[str, list[str]], where: str) -> LabelledClip:
    first = {name: cells[0] for name, cells in found.items() if cells}
    labels = [_label(text, where) for text in (first.get("label"), *first.get("labels", "").split(";")) if text]
    events = clip.events
    if "onset" in first or "offset" in first:
        if not first.get("label"):
            raise DataError(f"{where}: an onset or offset without a label")
        events = (*events, _event(first, where))
    questions = clip.questions
    if "question" in first or "answer" in first:
        questions = (*questions, _question({k: v for k, v in first.items() if k in ("question", "answer")}, where))
    seconds = _number(first.get("seconds"), f"{where}: seconds", default=clip.seconds)
    return replace(
        clip,
        labels=tuple(dict.fromkeys([*clip.labels, *labels])),
        captions=(*clip.captions, *found["caption"]),
        events=events,
        questions=questions,
        seconds=seconds,
        split=first.get("split", clip.split),
    )


def _object(value: Any, fields: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a JSON {type(value).__name__}; expected an object with {', '.join(fields)}")
    if unknown := sorted(set(value) - set(fields)):
        raise DataError(f"{where}: unknown {', '.join(unknown)}; expected {', '.join(fields)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{where} is a {type(value).__name__}; expected a list")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {value!r}; expected text")
    return value.strip()


def _label(value: Any, where: str) -> str:
    label = _text(value, where).replace("_", " ")
    if not label or ";" in label:
        raise DataError(f"{where} is {value!r}; expected the name of a sound, without ; which parts names")
    return label


def _number(value: Any, where: str, default: float | None = math.nan) -> Any:
    """A number of JSON or of a table's cell; `default` where there is none, NaN for those that must be there."""
    if value is None and not (isinstance(default, float) and math.isnan(default)):
        return default
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where} is {value!r}; expected a number")
    return number
