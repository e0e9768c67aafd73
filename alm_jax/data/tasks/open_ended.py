"""Audio Instruction Generation: a language model that is told events, features, times and captions of a clip writes
open-ended questions and answers about it (LTU, section 3.2 and appendix M; official `qa_generation/as_gpt_qa.py`).

The published code adds `" {text}"` behind what it tells of a clip, a leftover of a template; it is left out here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from alm_jax.core.errors import ConfigError
from alm_jax.data.endpoint import Asker
from alm_jax.data.rows import AUDIO_MARK, AudioRow
from alm_jax.data.tasks import ltu_prompts as prompts
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.draw import generator, sample
from alm_jax.data.tasks.ltu import Sounds, check_share, spans

TASK = "open_ended"
_QUESTION, _ANSWER = ("q", "question"), ("a", "answer")
# A dictionary that is no JSON, mostly for quotes inside of its texts.
_LOOSE = re.compile(r'\{\s*"q"\s*:\s*"(.*?)"\s*,\s*"a"\s*:\s*"(.*?)"\s*\}', re.DOTALL)
# What answers that decline say, after official `openaqa/utils/filter_not_answerable_qa.py`.
_DECLINES = re.compile(
    r"\b(cannot|can't (infer|tell|determine|be)|unclear|not (clear|possible|provided|specified)|impossible|sorry|"
    r"(enough|sufficient|more|additional) (information|context)|difficult to (determine|infer|tell)|"
    r"(does|do) not (provide|specify)|no (specific )?(indication|information))\b"
)


@dataclass(frozen=True)
class OpenEnded:
    """How many questions are asked for, and which are kept.

    Attributes:
        questions: asked for about each clip; as many as qualify are kept, up to this
        unanswerable: largest share of answers that decline ("it cannot be determined"); None keeps all: GPT-3.5-Turbo
            wrote about 0.065 of them, which LTU keeps
    """

    questions: int = 10
    unanswerable: float | None = None

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ConfigError(f"open-ended questions: {self.questions} about a clip; expected at least 1")
        if self.unanswerable is not None:
            check_share(self.unanswerable, "unanswerable")


def open_ended(clips: Sequence[LabelledClip], config: OpenEnded, seed: int, ask: Asker) -> Iterator[AudioRow]:
    """Rows of the clips of which anything is known; `meta.answerable` says whether an answer answers.

    Raises:
        EndpointError: the model does not answer.
    """
    known = [clip for clip in clips if clip.labels or clip.events or clip.captions]
    sounds = Sounds(known, ask)
    told = [prompt(clip, sounds, config.questions, seed) for clip in known]

    def lacks(i: int, answers: Sequence[str]) -> str:
        found = len(qualified(answers))
        return "" if found >= config.questions else f"{found} of {config.questions} questions qualify"

    answers = ask(told, lacks)
    left_out = _left_out(answers, config, seed)
    declined = 0
    for clip, given in zip(known, answers):
        for question, answer in qualified(given)[: config.questions]:
            answerable = answers_it(answer)
            declined += not answerable
            if answerable or declined - 1 not in left_out:
                meta = {"question": question, "answerable": answerable}
                yield AudioRow(question, audio_id=str(clip.path), task=TASK, output=answer, meta=meta)


def prompt(clip: LabelledClip, sounds: Sounds, questions: int, seed: int) -> tuple[str, str]:
    """What the model is asked about a clip: the system's message, and the user's, with what is known of the clip."""
    rng = generator(seed, TASK, clip.name)
    features = {label: sounds.feature(clip, label, rng) for label in clip.labels}
    provided = []
    if features:
        more = [prompts.ITS_FEATURES] * any(features.values()) + [f"and {prompts.ITS_TIMES}"] * bool(clip.events)
        provided.append(f"{', '.join([prompts.EVENTS, *more])}.")
    if clip.captions:
        provided.append(prompts.DESCRIPTION_TOO if provided else prompts.DESCRIPTION)
    told = [f"Sound Events: {'; '.join(_sound(clip, label, text) for label, text in features.items())}"] * bool(
        features
    )
    told += [f"Description: {' '.join(clip.captions)}"] * bool(clip.captions)
    return prompts.GENERATE.format(NUMBER=questions, INFORMATION=" ".join(provided)), "; ".join(told)


def _sound(clip: LabelledClip, label: str, feature: str) -> str:
    """`Sound of Fart (Low-pitched and short): [0.1s-0.8s, 5.6s-5.9s]`."""
    timed = any(event.label == label for event in clip.events)
    return f"Sound of {label}" + (f" ({feature})" if feature else "") + (f": {spans(clip, label)}" if timed else "")


def qualified(answers: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of question and answer in all that a model said about a clip, each question once."""
    found: dict[str, tuple[str, str]] = {}
    for question, answer in (pair for told in answers for pair in pairs_of(told)):
        if question and answer and AUDIO_MARK not in question + answer:
            found.setdefault(_plain(question), (question, answer))
    return list(found.values())


def pairs_of(answer: str) -> list[tuple[str, str]]:
    """The dictionaries of `q` and `a` in a model's answer: one a line, in an array, or among other text."""
    decoder, found, at = json.JSONDecoder(strict=False), [], answer.find("{")
    while at >= 0:
        try:
            told, end = decoder.raw_decode(answer, at)
            pair = _pair(told)
        except ValueError:
            match = _LOOSE.match(answer, at)
            pair, end = (match.groups(), match.end()) if match else (None, at)
        if pair:
            found.append(tuple(" ".join(text.split()) for text in pair))
        at = answer.find("{", end if pair else at + 1)
    return found


def answers_it(answer: str) -> bool:
    """Whether an answer answers its question, and does not say that this cannot be known."""
    return not _DECLINES.search(answer.lower())


@dataclass(frozen=True)
class Diversity:
    """How much rows differ (section 3.2: of 3.7 million 78 % of questions and 95 % of answers are unique).

    Attributes:
        rows: how many. questions, answers: shares of rows whose question, or answer, no other row has.
        unanswerable: share of answers that decline.
    """

    rows: int
    questions: float
    answers: float
    unanswerable: float


def diversity(rows: Iterable[AudioRow]) -> Diversity:
    """Of rows of open-ended questions, one at least."""
    questions: dict[bytes, int] = {}
    answers: dict[bytes, int] = {}
    number = declined = 0
    for row in rows:
        number += 1
        declined += not answers_it(row.output)
        for counts, text in ((questions, row.instruction), (answers, row.output)):
            key = blake2b(_plain(text).encode(), digest_size=8).digest()
            counts[key] = counts.get(key, 0) + 1
    unique = (sum(count == 1 for count in counts.values()) / number for counts in (questions, answers))
    return Diversity(number, *unique, declined / number)


def _left_out(answers: Sequence[Sequence[str]], config: OpenEnded, seed: int) -> frozenset[int]:
    """Numbers of those answers that decline which are too many."""
    if config.unanswerable is None or config.unanswerable == 1:
        return frozenset()
    good = bad = 0
    for given in answers:
        for _, answer in qualified(given)[: config.questions]:
            good, bad = (good + 1, bad) if answers_it(answer) else (good, bad + 1)
    kept = min(bad, int(config.unanswerable / (1 - config.unanswerable) * good))
    return frozenset(sample(range(bad), bad - kept, generator(seed, "unanswerable")))


def _pair(told: object) -> tuple[str, str] | None:
    if not isinstance(told, dict):
        return None
    given = {str(name).lower(): text for name, text in told.items()}
    pair = tuple(next((given[name] for name in names if name in given), None) for names in (_QUESTION, _ANSWER))
    return pair if all(isinstance(text, str) for text in pair) else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
