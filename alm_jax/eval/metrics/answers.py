"""Short answers: yes or no, a word, a number, high or low; and judgements by a language model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alm_jax.core.errors import DataError
from alm_jax.data.endpoint import Endpoint, Journal, ask, key_of

JUDGE = (
    "Below is a pair of question and response. Identify if the response answers the question. Return yes or no.\n\n"
    "Question: {question}\nResponse: {response}"
)  # LTU, table 12; how the pair follows is not told there
RATE = (
    "You are a helpful and precise assistant for checking the quality of the answer.\n[Detailed Audio Description]\n"
    "{about}\n[Question]\n{question}\n[The Start of Assistant 1s Answer]\n{first}\n[The End of Assistant 1s Answer]\n"
    "[The Start of Assistant 2s Answer]\n{second}\n[The End of Assistant 2s Answer]\n[System]\n"
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "and audio description displayed above. AI assistants are provided with detailed audio descriptions and "
    "questions.\nPlease rate the helpfulness, relevance, accuracy, and comprehensiveness of their responses. Each "
    "assistant receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance. Please output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space."
)  # AIR-Bench, chat part (official `score_chat.py`)
_TWO = re.compile(r"^\W*(\d+)[\s,]+(\d+)\W*$", re.MULTILINE)
_BEST = 10
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_COUNTS = {word: i for i, word in enumerate(_NUMBERS)} | {"once": 1, "twice": 2, "thrice": 3, "a single": 1}
_COUNT = re.compile(rf"(?<![\d.])\d+(?!\.?\d)|\b(?:{'|'.join(_COUNTS)})\b")
_DECLINES = re.compile(r"\b(unknown|unclear|cannot|can't|not possible|impossible|not enough information)\b")
_HIGH = re.compile(r"\b(high|higher|shrill|sharp)(?:[- ]?pitch\w*)?\b")
_LOW = re.compile(r"\b(low|lower|deep|bass)(?:[- ]?pitch\w*)?\b")


Verdict = TypeVar("Verdict")


def normal(text: str) -> str:
    """Lower case, words alone, without articles."""
    return " ".join(word for word in re.findall(r"[\w']+", text.lower()) if word not in ("a", "an", "the"))


def yes_or_no(text: str) -> bool | None:
    """What an answer says: its first yes or no; None if it says neither."""
    found = re.search(r"\b(yes|yeah|no|nope)\b", text.lower())
    return None if not found else found[1].startswith("y")


def count(text: str) -> int | None:
    """The first whole number of an answer, in digits or in words; None if it has none."""
    found = _COUNT.search(text.lower())
    return None if not found else int(found[0]) if found[0].isdigit() else _COUNTS[found[0]]


def pitch(text: str) -> int | None:
    """1 for high, -1 for low, 0 for neither or both in an answer that speaks of pitch; None for an empty one."""
    words = text.lower()
    return None if not words.strip() else bool(_HIGH.search(words)) - bool(_LOW.search(words))


def agreed(answers: Sequence[str]) -> str | None:
    """The answer that most annotators gave; None where no answer is given more often than every other one."""
    counts = Counter(map(normal, answers)).most_common(2)
    return None if len(counts) > 1 and counts[0][1] == counts[1][1] else counts[0][0]


def short_match(answer: str, said: str) -> bool:
    """Whether free text gives a short true answer.

    `yes` and `no` are compared with the first of both that is said, a number with the first number, `unknown` with any
    way to decline, and other answers are to be quoted in whole words.
    """
    true = normal(answer)
    if true in ("yes", "no"):
        return yes_or_no(said) is (true == "yes")
    if true == "unknown":
        return bool(_DECLINES.search(said.lower()))
    if true.isdigit() or true in _COUNTS:
        return count(said) == count(true)
    return f" {true} " in f" {normal(said)} "


def first_named(said: str, a: str, b: str, like: Callable[[str, str, str], int]) -> str | None:
    """Which of two sounds an answer puts first: that whose name stands first in it, or, where neither is named, the one
    that its first clause means (LTU, H.1).

    Args:
        like: `like(clause, a, b)` gives 0 or 1, which of both a clause means.
    """
    text = f" {normal(said)} "
    places = {name: text.find(f" {normal(name)} ") for name in (a, b)}
    named = {name: place for name, place in places.items() if place >= 0}
    if named:
        return min(named, key=named.get)
    clauses = [part for part in re.split(r"[,;.]|\bwhile\b|\bthen\b|\bfollowed by\b|\bbefore\b", said) if normal(part)]
    return (a, b)[like(clauses[0], a, b)] if clauses else None


def followed(
    questions: Sequence[str],
    responses: Sequence[str],
    endpoint: Endpoint,
    journal: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[bool]:
    """Whether a judge holds that each response answers its question (LTU, table 12); what it says is kept in `journal`.

    Raises:
        EndpointError: it does not answer. DataError: it says neither yes nor no, asked three times.
    """
    prompts = [JUDGE.format(question=q, response=r) for q, r in zip(questions, responses, strict=True)]
    told = _judged(prompts, yes_or_no, "neither yes nor no", endpoint, journal, progress)
    if None in told:
        raise DataError(
            f"{journal}: the judge says neither yes nor no of response {told.index(None)}; take another one"
        )
    return told


@dataclass(frozen=True)
class ToRate:
    """A question with two answers to it, of which a judge reads what else is known.

    Attributes:
        about: the recording, in words. reference, response: the true answer, and the one that is rated.
    """

    about: str
    question: str
    reference: str
    response: str


def rated(
    items: Sequence[ToRate],
    endpoint: Endpoint,
    journal: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[float, float] | None]:
    """A judge's scores, 1 to 10, of each reference and response (AIR-Bench): means over both orders of the two, since
    judges favour a place; None where it gives no two scores in either order, asked three times.

    Raises:
        EndpointError: it does not answer.
    """
    word = lambda item, *given: RATE.format(about=item.about, question=item.question, first=given[0], second=given[1])
    prompts = [word(item, item.reference, item.response) for item in items]
    prompts += [word(item, item.response, item.reference) for item in items]
    told = _judged(prompts, two_scores, "no two scores from 1 to 10", endpoint, journal, progress)
    found = []
    for one, turned in zip(told[: len(items)], told[len(items) :]):
        pairs = [pair for pair in (one, turned and turned[::-1]) if pair]
        found.append(tuple(sum(scores) / len(pairs) for scores in zip(*pairs)) if pairs else None)
    return found


def two_scores(text: str) -> tuple[int, int] | None:
    """The first line of an answer that is two numbers from 1 to 10."""
    pairs = ((int(match[1]), int(match[2])) for match in _TWO.finditer(text))
    return next((pair for pair in pairs if all(1 <= score <= _BEST for score in pair)), None)


def _judged(
    prompts: Sequence[str],
    read: Callable[[str], Verdict | None],
    problem: str,
    endpoint: Endpoint,
    journal: Path,
    progress: Callable[[int, int], None],
) -> list[Verdict | None]:
    """What is read from a judge's last answer to each prompt."""
    lacks = lambda i, answers: "" if read(answers[-1]) is not None else problem
    kept = Journal(journal)
    told = ask(endpoint, prompts, kept, lacks, progress=progress)
    kept.settle([key_of(endpoint.model, endpoint.temperature, prompt) for prompt in prompts])
    return [read(answers[-1]) for answers in told]
