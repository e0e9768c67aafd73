"""Questions and answers about composed scenes, and how answers are scored.

Answer formats follow LTU's closed-ended tasks (arXiv 2305.10790, table 2 and section 3.1): `Labels: A; B`,
`Audio caption: ...`, `A: [0.0s-1.0s]; B: ...` and `feature -> A`; the questions are worded here. A row's `meta` holds
the answer as data, which `score` compares with what it reads from a model's text.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from alm_jax.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from alm_jax.data.scenes import Event, Scene

DATASET = "scenes"
TOLERANCE_SECONDS = 1.0  # of onset and offset; LTU's audio tokens are 0.32 s long

_LEAD_SECONDS = 0.25  # sounds that start closer to each other have no order that one could hear
_LONG_SECONDS = 1.0
_LOW_HZ, _HIGH_HZ = 800.0, 2000.0
_QUIET_DB = 6.0  # below the loudest sound of the scene
_FEATURES = ("low-pitched", "medium-pitched", "high-pitched", "short", "long", "quiet", "loud")

_ASK_EVENTS = (
    "Classify the sound events in the audio clip.",
    "What sound events can be heard in this recording?",
    "List the labels of the sounds in the audio.",
    "Which sounds occur in this clip?",
    "Name every sound event that you hear.",
    "Identify the sound events of the recording.",
)
_ASK_CAPTION = (
    "Write an audio caption describing the sound.",
    "Describe the audio clip in one sentence.",
    "Give a caption for this recording.",
    "Summarize what is heard in the audio.",
    "Write a short description of the sounds in this clip.",
)
_ASK_WHEN_ALL = (
    "Classify the sound events in the audio clip, also output the timestamp of each audio event.",
    "List each sound event with its start and end time.",
    "When does each sound start and stop?",
    "Give the time span of every sound event in the recording.",
)
_ASK_WHEN_ONE = (
    "When is the sound of {} heard?",
    "At what times does the sound of {} occur?",
    "Give the start and end times of the sound of {}.",
    "Locate the sound of {} in the recording.",
)
_ASK_COUNT = (
    "How many times is the sound of {} heard?",
    "In how many instances is the sound of {} heard?",
    "Count how often the sound of {} occurs.",
    "How often can the sound of {} be heard in this clip?",
    "What is the number of times that the sound of {} occurs?",
)
_ASK_FIRST = (
    "Which sound begins first, {} or {}?",
    "Which one is heard first: {} or {}?",
    "Of the sounds of {} and {}, which comes first?",
    "Does the recording have {} or {} first?",
)
_ASK_FIRST_OF_ALL = (
    "Which sound begins first?",
    "What is the first sound event in the recording?",
    "Name the sound that is heard first.",
)
_ASK_ORDER = (
    "In what order do the sound events begin?",
    "List the sounds in the order in which they are first heard.",
    "Sort the sound events of the clip by their start.",
    "What is the sequence of the sounds in this recording?",
)
_ASK_FEATURES = (
    "Classify the sound events in the audio clip based on acoustic features.",
    "Describe the acoustic features of each sound event.",
    "Name the sounds in the recording by how they sound.",
)
_ASK_FEATURES_ONE = (
    "Describe the acoustic features of the sound of {}.",
    "What are the acoustic features of the sound of {}?",
    "How does the sound of {} sound in terms of pitch, length and loudness?",
)
_ASK_PRESENCE = (
    "Is the sound of {} heard?",
    "Can you hear the sound of {} in this recording?",
    "Does the audio clip contain the sound of {}?",
    "Is there a sound of {} in the clip?",
)

# (instruction, output, answer as data)
Question = tuple[str, str, dict]


def make_rows(
    scene: "Scene", audio_id: str, kinds: Iterable[str], seed: int, *, vocabulary: Sequence[str] = ()
) -> list[dict]:
    """Writes at most one row of each kind about a scene; a kind that does not apply to it gives none.

    Args:
      scene: what is heard.
      audio_id: path of its sound, as rows give it.
      kinds: names in `QUESTION_KINDS`.
      seed: with the kind's name it decides the wording and what is asked about.
      vocabulary: phrases from which absent sounds are chosen; `presence` and `unanswerable` need one that is not in the
        scene.

    Returns:
      LTU's rows (instruction, input, audio_id, dataset, task, output), `task` being the kind, with `caption`: what is
      heard, for training on text alone; and `meta`: the answer as data.
    """
    kinds = list(kinds)
    unknown = [kind for kind in kinds if kind not in QUESTION_KINDS]
    if unknown:
        raise UsageError(f"question kind {', '.join(unknown)}: expected {', '.join(QUESTION_KINDS)}")
    heard = {event.phrase for event in scene.events} | {scene.background}
    absent = sorted(set(vocabulary) - heard)
    caption, _ = _described(scene)
    rows = []
    for kind in kinds:
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        question = QUESTION_KINDS[kind](scene, absent, rng)
        if question:
            instruction, output, meta = question
            clip = {"audio_id": audio_id, "caption": caption, "dataset": DATASET}
            rows.append({"instruction": instruction, "input": "", **clip, "task": kind, "output": output, "meta": meta})
    return rows


def score(kind: str, prediction: str, row: dict) -> float:
    """Scores a free-form answer from 0 to 1 against a row's `meta`.

    events: F1 of the label set. caption, order: F1 of the longest common subsequence of the sounds named. when: F1 of
    events with the right label, onset and offset within `TOLERANCE_SECONDS`. features: F1 of (label, feature) pairs.
    count, first, presence: right or wrong. unanswerable: right if it declines and names the sound that is missing.

    Raises:
      UsageError: an unknown kind.
      DataError: a row without the answer as data.
    """
    if kind not in _SCORERS:
        raise UsageError(f"question kind {kind}: expected {', '.join(_SCORERS)}")
    try:
        return float(_SCORERS[kind](prediction, row["meta"]))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"row of {row.get('audio_id')}: its meta is no answer of kind {kind} ({error}); write the rows again"
        ) from error


def majority_answers(rows: Iterable[dict]) -> dict[str, str]:
    """The most frequent output of each kind (`task`); the first in alphabetical order where several are."""
    outputs = defaultdict(Counter)
    for row in rows:
        outputs[row["task"]][row["output"]] += 1
    return {kind: min(counts, key=lambda text: (-counts[text], text)) for kind, counts in outputs.items()}


def _ask(templates: Sequence[str], rng: np.random.Generator, *words: str) -> str:
    return templates[int(rng.integers(len(templates)))].format(*words)


def _choose(items: Sequence, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))]


def _first_heard(scene: "Scene") -> dict[str, "Event"]:
    """The first event of each sound, by onset."""
    first: dict[str, Event] = {}
    for event in scene.events:
        first.setdefault(event.phrase, event)
    return first


def _events(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    labels = list(_first_heard(scene))
    return _ask(_ASK_EVENTS, rng), "Labels: " + "; ".join(labels), {"labels": labels}


def _caption(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    text, sounds = _described(scene)
    return _ask(_ASK_CAPTION, rng), f"Audio caption: {text}", {"sounds": sounds}


def _described(scene: "Scene") -> tuple[str, list[str]]:
    """A scene in words, and the sounds that they name."""
    text, sounds, end = "", [], None
    for phrase, run in groupby(scene.events, key=lambda event: event.phrase):
        run = list(run)
        # One recording may hold several barks: then the number of its repeats is not what a listener counts.
        times = len(run) if all(event.countable for event in run) else 1
        if text:
            text += ", joined by " if run[0].onset < end else ", then "
        text += phrase + ("" if times == 1 else f" {times} times")
        sounds += [phrase] * times
        end = max(event.offset for event in run)
    if scene.background:
        text += f", with {scene.background} in the background"
    return f"{text}.", sounds


def _when(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    labels = list(_first_heard(scene))
    if rng.random() < 0.5:
        instruction, events = _ask(_ASK_WHEN_ALL, rng), scene.events
    else:
        phrase = _choose(labels, rng)
        instruction = _ask(_ASK_WHEN_ONE, rng, phrase)
        events = [event for event in scene.events if event.phrase == phrase]
    output = "; ".join(f"{event.phrase}: [{event.onset:.1f}s-{event.offset:.1f}s]" for event in events)
    return instruction, output, {"events": [[event.phrase, event.onset, event.offset] for event in events]}


def _count(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    times = Counter(event.phrase for event in scene.events)
    uncountable = {event.phrase for event in scene.events if not event.countable}
    phrases = [phrase for phrase in times if phrase not in uncountable]
    if not phrases:
        return None
    phrase = _choose(phrases, rng)
    count = times[phrase]
    output = f"It is heard {count} time{'s' if count > 1 else ''}."
    return _ask(_ASK_COUNT, rng, phrase), output, {"count": count}


def _first(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    first = _first_heard(scene)
    labels = list(first)
    if len(labels) < 2:
        return None
    if rng.random() < 0.5:
        choices = labels
        instruction = _ask(_ASK_FIRST_OF_ALL, rng)
    else:
        choices = [labels[i] for i in sorted(rng.permutation(len(labels))[:2])]
        instruction = _ask(_ASK_FIRST, rng, *(choices if rng.random() < 0.5 else choices[::-1]))
    if first[choices[1]].onset - first[choices[0]].onset < _LEAD_SECONDS:
        return None
    return instruction, f"First: {choices[0]}", {"first": choices[0], "choices": sorted(choices)}


def _order(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    first = _first_heard(scene)
    leads = [later.onset - earlier.onset for earlier, later in pairwise(first.values())]
    if not leads or min(leads) < _LEAD_SECONDS:
        return None
    return _ask(_ASK_ORDER, rng), "Order: " + "; ".join(first), {"sounds": list(first)}


def acoustic_features(event: "Event", loudest_db: float) -> list[str]:
    """Pitch, length and loudness of an event, as measured."""
    low, high = event.centroid_hz < _LOW_HZ, event.centroid_hz > _HIGH_HZ
    return [
        "low-pitched" if low else "high-pitched" if high else "medium-pitched",
        "long" if event.offset - event.onset >= _LONG_SECONDS else "short",
        "quiet" if event.level_db <= loudest_db - _QUIET_DB else "loud",
    ]


def _features(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    loudest = max(event.level_db for event in scene.events)
    features = {phrase: acoustic_features(event, loudest) for phrase, event in _first_heard(scene).items()}
    if rng.random() < 0.5:
        instruction = _ask(_ASK_FEATURES, rng)
    else:
        phrase = _choose(list(features), rng)
        instruction, features = _ask(_ASK_FEATURES_ONE, rng, phrase), {phrase: features[phrase]}
    output = "; ".join(f"{', '.join(words)} -> {phrase}" for phrase, words in features.items())
    return instruction, output, {"features": features}


def _presence(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    if not absent:
        return None
    present = bool(rng.random() < 0.5)
    phrase = _choose(list(_first_heard(scene)) if present else absent, rng)
    output = "Yes, it is heard." if present else "No, it is not heard."
    return _ask(_ASK_PRESENCE, rng, phrase), output, {"present": present}


def _unanswerable(scene: "Scene", absent: list[str], rng: np.random.Generator) -> Question | None:
    """Worded like the questions that have an answer: only the sound tells that this one has none."""
    if not absent:
        return None
    phrase = _choose(absent, rng)
    instruction = _ask(_choose((_ASK_WHEN_ONE, _ASK_COUNT, _ASK_FEATURES_ONE), rng), rng, phrase)
    output = f"It cannot be determined from the audio, because the sound of {phrase} is not heard."
    return instruction, output, {"missing": phrase}


QUESTION_KINDS: dict[str, Callable[["Scene", list[str], np.random.Generator], Question | None]] = {
    "events": _events,
    "caption": _caption,
    "when": _when,
    "count": _count,
    "first": _first,
    "order": _order,
    "features": _features,
    "presence": _presence,
    "unanswerable": _unanswerable,
}


_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_COUNT_WORDS = {word: i for i, word in enumerate(_NUMBERS)} | {"once": 1, "twice": 2, "thrice": 3, "single": 1}
_COUNT = re.compile(rf"\d+|\b(?:{'|'.join(_COUNT_WORDS)})\b")
_TIMES = re.compile(rf"\s+\(?(?:(?:once|twice|thrice)|(?:\d+|{'|'.join(_NUMBERS)}) times?)\)?$")
_DECLINES = re.compile(
    r"(cannot|can not|can't|could not|couldn't|impossible to) (be )?(determine|tell|say|answer|know|hear)|"
    r"\bno\b.*\b(heard|present|audible)|not (be )?(heard|present|audible|in the)|unknown|not enough information"
)
_INTERVAL = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?\s*(?:-|–|to|and)\s*(\d+(?:\.\d+)?)\s*(?:s\b|sec|seconds)?"
)
# As `_words` leaves them.
_FILLER = frozenset(
    "a an and are at audio be been begin between by can clip contain from has have heard hear in is it of occur "
    "record second sec sound start that the then there thi to was were".split()
)


def _words(text: str) -> str:
    """Lower case, without punctuation, plural s and -ing: `Dogs barking!` and `dog bark` agree."""
    return " ".join(_stem(word) for word in re.findall(r"[a-z0-9']+", text.lower()))


def _stem(word: str) -> str:
    for suffix in ("ing", "s"):
        if word.endswith(suffix) and len(word) > len(suffix) + 2 and not word.endswith("ss"):
            return word.removesuffix(suffix)
    return word


def _position(phrase: str, text: str) -> int:
    """Where a phrase is first named in a text, in whole words; -1 if it is not."""
    return f" {_words(text)} ".find(f" {_words(phrase)} ")


def _body(prediction: str, *prefixes: str) -> str:
    """A prediction in lower case after the last of the prefixes that it holds, without the full stop."""
    text = prediction.lower()
    for prefix in prefixes:
        text = text.rpartition(prefix + ":")[2]
    return text.strip().rstrip(".").strip()


def _items(text: str, labels: Iterable[str]) -> list[str]:
    """The items of a list: parted by our separators if it holds any, else by what free text has between sounds."""
    if _words(text) in map(_words, labels):  # a label may hold commas itself
        return [text]
    for separator in (";", ", (?:then|joined by) "):
        if re.search(separator, text):
            break
    else:
        separator = r",|\bthen\b|\band\b|\bfollowed by\b"
    return [part.strip() for part in re.split(separator, text) if _words(part)]


def _match(item: str, labels: Iterable[str]) -> str:
    """The label that an item names, or else the item itself.

    A short item must be the label, perhaps with words before it (`a distant siren`), so that `wind chime` is not
    `wind`; a long one, a clause, may hold it anywhere.
    """
    plain = " ".join(word for word in _words(item).split() if word not in _FILLER)
    whole = [label for label in labels if f" {plain}".endswith(f" {_words(label)}")]
    if not whole and len(plain.split()) > 4:
        whole = [label for label in labels if _position(label, item) >= 0]
    return max(whole, key=len, default=plain)


def _f1(hits: int, predicted: int, true: int) -> float:
    return 2 * hits / (predicted + true) if predicted + true else 0.0


def _score_events(prediction: str, answer: dict) -> float:
    true = set(answer["labels"])
    text = _body(prediction, "labels", "audio caption")
    predicted = {_match(item, true) for item in _items(text, true)}
    return _f1(len(predicted & true), len(predicted), len(true))


def _common(a: Sequence, b: Sequence) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(row[j], above[j + 1]))
        above = row
    return above[-1]


def _score_sequence(prediction: str, answer: dict) -> float:
    true, labels = answer["sounds"], set(answer["sounds"])
    text = re.split(r",? with (?=[^,;]*background)", _body(prediction, "audio caption", "order", "labels"))[0]
    predicted = []
    for item in _items(text, labels):
        counted = _TIMES.search(item)
        times = _number(counted[0]) if counted else 1
        predicted += [_match(_TIMES.sub("", item), labels)] * min(times, 20)
    return _f1(_common(predicted, true), len(predicted), len(true))


def _score_when(prediction: str, answer: dict) -> float:
    left = [tuple(event) for event in answer["events"]]
    labels = {label for label, _, _ in left}
    true, predicted = len(left), 0
    # An answer about one sound need not name it.
    label = next(iter(labels)) if len(labels) == 1 else ""
    for part in re.split(r";|\.\s", prediction.lower()):
        end = 0
        for interval in _INTERVAL.finditer(part):
            before = part[end : interval.start()]
            if any(word not in _FILLER for word in _words(before).split()):
                label = _match(before, labels)
            predicted, end = predicted + 1, interval.end()
            onset, offset = float(interval[1]), float(interval[2])
            hits = (
                event
                for event in left
                if event[0] == label and max(abs(event[1] - onset), abs(event[2] - offset)) <= TOLERANCE_SECONDS
            )
            hit = next(hits, None)
            if hit:
                left.remove(hit)
    return _f1(true - len(left), predicted, true)


def _number(text: str) -> int | None:
    found = _COUNT.search(text.lower())
    return None if not found else int(found[0]) if found[0].isdigit() else _COUNT_WORDS[found[0]]


def _score_count(prediction: str, answer: dict) -> float:
    return _number(prediction) == answer["count"]


def _score_first(prediction: str, answer: dict) -> float:
    named = {choice: _position(choice, prediction) for choice in answer["choices"]}
    named = {choice: place for choice, place in named.items() if place >= 0}
    # Of labels named at one place the longer one is meant: `wind chime` also names `wind`.
    return bool(named) and min(named, key=lambda choice: (named[choice], -len(choice))) == answer["first"]


def _score_presence(prediction: str, answer: dict) -> float:
    text = prediction.strip().lower()
    if re.match(r"(yes|no)\b", text):
        present = text.startswith("yes")
    elif _DECLINES.search(text) or re.search(r"\b(no|not|absent)\b|n't\b", text):
        present = False
    elif re.search(r"\b(yes|is heard|present|there is|can be heard|contains|audible)\b", text):
        present = True
    else:
        return 0.0
    return present == answer["present"]


def _score_features(prediction: str, answer: dict) -> float:
    true = {(label, word) for label, words in answer["features"].items() for word in words}
    labels = sorted(answer["features"])
    predicted = set()
    for part in re.split(r";|\.\s", prediction.lower()):
        text, arrow, name = part.replace("→", "->").partition("->")
        if arrow:
            label = _match(name.strip().rstrip("."), labels)
        else:
            named = [label for label in labels if _position(label, text) >= 0]
            label = named[0] if named else labels[0] if len(labels) == 1 else text
        plain = text.replace("-", " ")
        predicted |= {(label, word) for word in _FEATURES if re.search(rf"\b{word.replace('-', ' ')}\b", plain)}
    return _f1(len(predicted & true), len(predicted), len(true))


def _score_unanswerable(prediction: str, answer: dict) -> float:
    return bool(_DECLINES.search(prediction.lower())) and _position(answer["missing"], prediction) >= 0


_SCORERS: dict[str, Callable[[str, dict], float]] = {
    "events": _score_events,
    "caption": _score_sequence,
    "when": _score_when,
    "count": _score_count,
    "first": _score_first,
    "order": _score_sequence,
    "features": _score_features,
    "presence": _score_presence,
    "unanswerable": _score_unanswerable,
}
