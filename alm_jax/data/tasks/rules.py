"""NLAR's questions by rule: true of the annotations by construction, without a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from alm_jax.data.tasks.draw import generator, pick, sample
from alm_jax.data.tasks.reasoning import ORDINALS, THROUGHOUT, UNKNOWN, Pair, Question, Sound

_LOUDER_DB = 3.0
_LONGER_SECONDS = 0.5

# Text and answer; None where a kind does not apply. What is asked is drawn from both recordings as one set, so that a
# pair is asked the same whichever recording comes first, and only the answer turns with the order.
Asked = tuple[str, str] | None
Kind = Callable[[Pair, Sequence[str], np.random.Generator], Asked]


def write_by_rule(pairs: Sequence[Pair], count: int, seed: int) -> list[list[Question]]:
    """Up to `count` questions about each pair, each of another kind (a `reasoning.Writer`)."""
    labels = sorted({sound.label for pair in pairs for sound in _sounds(pair)})
    return [_questions(pair, labels, count, seed) for pair in pairs]


def _questions(pair: Pair, labels: Sequence[str], count: int, seed: int) -> list[Question]:
    heard = {sound.label for sound in _sounds(pair)}
    absent = [label for label in labels if label not in heard]
    found = []
    for kind in sample(list(KINDS), len(KINDS), generator(seed, "kinds", pair.name)):
        asked = KINDS[kind](pair, absent, generator(seed, kind, pair.name))
        if asked and len(found) < count:
            found.append(Question(*asked, kind))
    return found


def _sounds(pair: Pair) -> list[Sound]:
    return [*pair.first, *pair.second]


def _labels(pair: Pair, *, countable: bool = False) -> list[str]:
    """Labels of both recordings; or those that can be counted wherever they are heard."""
    uncounted = {sound.label for sound in _sounds(pair) if sound.times is None}
    return sorted({sound.label for sound in _sounds(pair)} - (uncounted if countable else set()))


def _times(sounds: Sequence[Sound], label: str) -> int:
    return sum(sound.times or 0 for sound in sounds if sound.label == label)


def _where(in_first: bool, in_second: bool) -> str:
    return "both" if in_first and in_second else ORDINALS[in_second]


def _more(first: float, second: float, margin: float = 0.0) -> str | None:
    """Which recording has more of something; None where they are too close to tell."""
    return None if abs(first - second) <= margin else ORDINALS[second > first]


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _total(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    labels = _labels(pair, countable=True)
    if not labels:
        return None
    asked = sorted(sample(labels, 1 + int(rng.integers(2)), rng))
    text = pick(
        (
            "How many times is the sound of {} heard in total?",
            "How often is the sound of {} heard in the two recordings?",
        ),
        rng,
    )
    return text.format(" or ".join(asked)), str(sum(_times(_sounds(pair), label) for label in asked))


def _claim(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    labels = _labels(pair, countable=True)
    if not labels:
        return None
    label = pick(labels, rng)
    true, wrong = _times(_sounds(pair), label), 1 + int(rng.integers(2))
    told = true if rng.random() < 0.5 else true + wrong if rng.random() < 0.5 or true <= wrong else true - wrong
    return f"Is the sound of {label} heard {told} time{'s' * (told > 1)} in total?", _yes(told == true)


def _frequent(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    if any(sound.times is None for sound in _sounds(pair)):
        return None
    answer = _more(*(sum(sound.times for sound in sounds) for sounds in pair[:2]))
    texts = ("In which recording are the events more frequent?", "Which recording has more sound events?")
    return answer and (pick(texts, rng), answer)


def _more_often(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    labels = _labels(pair, countable=True)
    if not labels:
        return None
    label, one = pick(labels, rng), int(rng.integers(2))
    counts = [_times(sounds, label) for sounds in pair[:2]]
    text = f"Is the sound of {label} heard more often in the {ORDINALS[one]} recording than in the {ORDINALS[1 - one]}?"
    return text, _yes(counts[one] > counts[1 - one])


def _place(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    label = pick(_labels(pair), rng)
    text = pick(("In which recording is the sound of {} heard?", "Which recording has the sound of {}?"), rng).format(
        label
    )
    return text, _where(*(any(sound.label == label for sound in sounds) for sounds in pair[:2]))


def _presence(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    label, which = pick(_labels(pair), rng), int(rng.integers(2))
    text = f"Is the sound of {label} heard in the {ORDINALS[which]} recording?"
    return text, _yes(any(sound.label == label for sound in pair[which]))


def _kinds(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    answer = _more(*(len(sounds) for sounds in pair[:2]))
    texts = ("Which recording has more kinds of sound events?", "In which recording are more different sound events?")
    return answer and (pick(texts, rng), answer)


def _shared(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    shared = {sound.label for sound in pair.first} & {sound.label for sound in pair.second}
    text = pick(("Do the two recordings share a sound event?", "Is any sound event heard in both recordings?"), rng)
    return text, _yes(bool(shared))


def _louder(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    if any(sound.level_db is None for sound in _sounds(pair)):
        return None
    answer = _more(*(max(sound.level_db for sound in sounds) for sounds in pair[:2]), _LOUDER_DB)
    texts = ("Which recording has the loudest sound?", "In which recording is the loudest sound heard?")
    return answer and (pick(texts, rng), answer)


def _feature(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    features = sorted(set(chain.from_iterable(sound.features for sound in _sounds(pair))))
    if not features:
        return None
    word = pick(features, rng)
    found = (any(word in sound.features for sound in sounds) for sounds in pair[:2])
    return f"Which recording has a sound that is {word}?", _where(*found)


def _longest(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    answer = _more(*(max(sound.seconds for sound in sounds) for sounds in pair[:2]), _LONGER_SECONDS)
    texts = ("Which recording has the longest sound?", "In which recording does a sound last longest?")
    return answer and (pick(texts, rng), answer)


def _continuous(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    label, which = pick(_labels(pair), rng), int(rng.integers(2))
    text = f"Is the sound of {label} heard throughout the {ORDINALS[which]} recording?"
    return text, _yes(any(sound.label == label and sound.where == THROUGHOUT for sound in pair[which]))


def _unanswerable(pair: Pair, absent: Sequence[str], rng: np.random.Generator) -> Asked:
    """A comparison of a sound that neither recording has, or a count of one that cannot be counted."""
    uncounted = [label for label in _labels(pair) if label not in _labels(pair, countable=True)]
    if uncounted and (not absent or rng.random() < 0.5):
        return f"How many times is the sound of {pick(uncounted, rng)} heard in total?", UNKNOWN
    if not absent:
        return None
    text = pick(
        ("In which recording is the sound of {} louder?", "In which recording does the sound of {} last longer?"), rng
    )
    return text.format(pick(absent, rng)), UNKNOWN


KINDS: dict[str, Kind] = {
    "total": _total,
    "claim": _claim,
    "frequent": _frequent,
    "more_often": _more_often,
    "place": _place,
    "presence": _presence,
    "kinds": _kinds,
    "shared": _shared,
    "louder": _louder,
    "feature": _feature,
    "longest": _longest,
    "continuous": _continuous,
    "unanswerable": _unanswerable,
}
