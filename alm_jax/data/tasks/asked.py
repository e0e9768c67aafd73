"""NLAR's questions by a language model, inspected against the annotations (APT, section IV, B)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alm_jax.data.endpoint import Asker
from alm_jax.data.tasks import prompts
from alm_jax.data.tasks.reasoning import ORDINALS, UNKNOWN, Pair, Question, Sound, render

_LINE = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]*(.+?[?.!])[ \t]*(?:->|[-–—:])+[ \t]*(\S.*)$", re.MULTILINE)
_ANSWER_WORDS = 3
_DESCRIPTION_WORDS = 20  # asked for less than 10
_DECLINES = re.compile(r"\b(unknown|unclear|unanswerable|cannot|can't|not (?:clear|known|sure|enough)|undetermined)\b")
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_PLACED = re.compile(r"\b(hear|heard|present|contains?|appears?|occurs?|has|have)\b")


@dataclass(frozen=True)
class AskedWriter:
    """Asks a language model as the paper does: for five pairs of question and answer, again if fewer qualify.

    A `reasoning.Writer`. Sounds without features are described first, by the model too. A pair that never gets enough
    questions keeps those that qualify.
    """

    ask: Asker

    def __call__(self, pairs: Sequence[Pair], count: int, seed: int) -> list[list[Question]]:
        """Questions that qualify. Raises EndpointError if the model does not answer."""
        del seed  # answers are the journal's: the same run again makes the same rows of them
        pairs = self._described(pairs)
        asked = [prompts.RENDER.format(NUMBER=count, AUDIOS=render(pair)) for pair in pairs]

        def lacks(i: int, answers: Sequence[str]) -> str:
            found = qualified(answers, pairs[i])
            return "" if len(found) >= count else f"{len(found)} of {count} questions qualify"

        return [qualified(answers, pair)[:count] for answers, pair in zip(self.ask(asked, lacks), pairs)]

    def _described(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs, with a description of every sound that has no features."""
        bare = {sound.label for pair in pairs for sound in (*pair.first, *pair.second) if not sound.features}
        told = describe(sorted(bare), prompts.DESCRIBE, self.ask)

        def tell(sounds: Sequence[Sound]) -> tuple[Sound, ...]:
            return tuple(
                s if s.features or not told[s.label] else replace(s, features=(told[s.label][-1],)) for s in sounds
            )

        return [pair._replace(first=tell(pair.first), second=tell(pair.second)) for pair in pairs]


def describe(labels: Sequence[str], prompt: str, ask: Asker, count: int = 1) -> dict[str, tuple[str, ...]]:
    """How sounds sound, by a language model: of each label up to `count` descriptions, those that are of use.

    Args:
        prompt: has `{SOUND}` in the label's place.
    """
    answers = ask(
        [prompt.format(SOUND=label) for label in labels],
        lambda i, answers: "" if description(answers[-1]) else "no description in a few words",
        wants=count,
    )
    return {label: tuple(filter(None, map(description, texts))) for label, texts in zip(labels, answers)}


def description(answer: str) -> str:
    """A model's description of a sound on one line, without its full stop; empty if it is not one in a few words."""
    text = " ".join(answer.split()).strip("\"'. ").lower()
    return text if 0 < len(text.split()) <= _DESCRIPTION_WORDS and not re.search(r"[\[\]();]", text) else ""


def qualified(answers: Sequence[str], pair: Pair) -> list[Question]:
    """The questions in a model's answers that are well formed and not at odds with the annotations, each once."""
    found: dict[str, Question] = {}
    for text, answer in (match for told in answers for match in _LINE.findall(told)):
        short = _short(answer)
        if short and not contradicts(text, short, pair):
            found.setdefault(text.lower(), Question(text[:1].upper() + text[1:], short, "asked"))
    return list(found.values())


def contradicts(question: str, answer: str, pair: Pair) -> bool:
    """Whether the annotations show an answer to be wrong: a count of named sounds, or the place of one.

    What they do not tell (a mood, how sudden a sound is) is believed, and so is that something cannot be known.
    """
    text = question.lower()
    sounds = [*pair.first, *pair.second]
    named = {sound.label for sound in sounds if re.search(rf"\b{re.escape(sound.label.lower())}", text)}
    recordings = [sounds for word, sounds in zip(ORDINALS, pair[:2]) if re.search(rf"\b{word}\b", text)]
    if not named or answer == UNKNOWN:
        return False
    if re.search(r"\bhow (many|often)\b", text):
        if len(recordings) == 1:
            sounds = list(recordings[0])
        counts = [sound.times for sound in sounds if sound.label in named]
        return None not in counts and answer.isdigit() and int(answer) != sum(counts)
    if re.search(r"\b(which|what) (recording|audio|clip)\b", text) and len(named) == 1 and _PLACED.search(text):
        if answer in ORDINALS:
            return named.isdisjoint(sound.label for sound in pair[ORDINALS.index(answer)])
    return False


def _short(answer: str) -> str:
    """An answer as rows have it: a number in digits, or at most a few words in lower case; empty if it is longer."""
    text = answer.strip().strip("\"'*. ").lower()
    if _DECLINES.search(text):
        return UNKNOWN
    if text in _NUMBERS:
        return str(_NUMBERS.index(text))
    text = re.sub(r"^(?:the )?(first|second)(?: (?:one|recording|audio|clip))?$", r"\1", text)
    return text if 0 < len(text.split()) <= _ANSWER_WORDS else ""
