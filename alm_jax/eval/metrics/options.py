"""Multiple choice: questions as benchmarks word them, and which option a free answer means."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from alm_jax.eval.avqa import PROMPT

AIR_BENCH = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D."
)  # official `Inference_Foundation.py`
MATS_MMAU = "{question} Select one option: {options} Respond with exactly one of the options above."


def air_bench_prompt(question: str, options: Sequence[str]) -> str:
    """AIR-Bench's question: an instruction, the question, and options by letter."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options))
    return f"{AIR_BENCH}\n{question}\n{listed}"


def mmau_prompt(question: str, options: Sequence[str]) -> str:
    """MMAU's question as MATS asks it (section 4.1)."""
    return MATS_MMAU.format(question=question, options="; ".join(options))


def avqa_prompt(question: str, options: Sequence[str]) -> str:
    """AVQA's question as APT-BLIP-2 asks it (`eval.avqa.PROMPT`), also of other than four options."""
    listed = "; ".join(f"{i} {option}" for i, option in enumerate(options))
    return f"{PROMPT.partition('0 {0}')[0].format(question=question)}{listed}. Answer:"


def mmau_match(answer: str, said: str, options: Sequence[str]) -> bool:
    """Whether an answer is right: it holds each word of the right option, and none that only wrong ones have (MMAU's
    `evaluation.py`)."""
    right, words = _words(answer), _words(said)
    wrong = set().union(*(_words(option) - right for option in options if _words(option) != right))
    return bool(words) and right <= words and not words & wrong


def option_of(said: str, options: Sequence[str]) -> int | None:
    """Number of the option that an answer means, None if it means none or several.

    It is the one that the answer is, but for case and marks; else that whose letter or number it names at its
    beginning (`B.`, `(B)`, `1`) or as its choice (`the answer is B`); else the only one that it quotes.
    """
    text, plain = said.strip(), [" ".join(re.findall(r"\w+", option.lower())) for option in options]
    words = " ".join(re.findall(r"\w+", text.lower()))
    if words in plain:
        return plain.index(words)
    letters = string.ascii_uppercase[: len(options)]
    named = (
        re.match(rf"[(\[]?([{letters}{letters.lower()}])[).\]]", text)
        or re.match(rf"([{letters}])(?:[:,]|$|\s*[-–]\s)", text)
        or re.search(rf"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*[(\[]?([{letters}])\b", text)
    )
    if named:
        return letters.index(named[1].upper())
    if (number := re.match(r"(\d)\b(?!\s*\w)", text)) and int(number[1]) < len(options):
        return int(number[1])
    quoted = [i for i, option in enumerate(plain) if option and f" {option} " in f" {words} "]
    # `wind chime` also quotes `wind`.
    quoted = [i for i in quoted if not any(i != j and f" {plain[i]} " in f" {plain[j]} " for j in quoted)]
    return quoted[0] if len(quoted) == 1 else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))
