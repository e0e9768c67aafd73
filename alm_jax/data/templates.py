"""Prompt templates: how a row's fields become the parts of an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alm_jax.core.sequence import Audio, Part, Text
from alm_jax.data.rows import AUDIO_MARK, AudioRow
from alm_jax.data.text import mats_answer


@dataclass(frozen=True)
class Template:
    """A prompt with and without further input.

    Attributes:
        name: for records.
        no_input: the prompt, with `{instruction}`, and `<audio>` if a row's clips stand elsewhere than before it.
        with_input: the prompt of a row whose `input` is not empty, with `{instruction}` and `{input}`.
        answers: how a model's answers are written: as it gives them, or as MATS's evaluation writes them.
    """

    name: str
    no_input: str
    with_input: str
    answers: Literal["plain", "mats"] = "plain"

    def finished(self, answer: str) -> str:
        """An answer as it is written, without blanks around it."""
        return mats_answer(answer) if self.answers == "mats" else answer.strip()

    def prompt(self, instruction: str, input: str = "") -> str:
        return (self.with_input if input else self.no_input).format(instruction=instruction, input=input)

    def parts(self, row: AudioRow, *, answer: bool = True) -> list[Part]:
        """The row's prompt with its clips, and its answer as the text to learn (`answer=False`: to be generated).

        A clip stands where its `<audio>` mark does; the clips of a row without marks stand where the template has its
        mark, or else before the prompt.
        """
        unmarked = "" if row.marks else AUDIO_MARK * row.num_clips
        template = self.with_input if row.input else self.no_input
        if AUDIO_MARK not in template:
            template = AUDIO_MARK + template
        prompt = template.replace(AUDIO_MARK, unmarked).format(instruction=row.instruction, input=row.input)
        leading, *following = prompt.split(AUDIO_MARK)
        parts: list[Part] = [Text(leading)] if leading else []
        for clip, text in enumerate(following):
            parts += [Audio(clip), Text(text)] if text else [Audio(clip)]
        if answer:
            parts.append(Text(row.output, loss=True))
        return parts


ALPACA_SHORT = Template(
    name="alpaca_short",
    no_input="### Instruction:\n{instruction}\n\n### Response:\n",
    with_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
"""LTU's and LTU-AS's (`templates/alpaca_short.json`)."""

CHATML = Template(
    name="chatml",
    no_input="<|im_start|>user\n<audio>{instruction}<|im_end|>\n<|im_start|>assistant\n",
    with_input="<|im_start|>user\n<audio>{instruction}\n\n{input}<|im_end|>\n<|im_start|>assistant\n",
)
"""One turn in the form of SmolLM2-Instruct and other ChatML models; the turn's end, `<|im_end|>`, is their EOS.

What is heard stands inside the user's turn: before it, these models hardly read it (docs/architecture.md)."""

PLAIN = Template(name="plain", no_input="{instruction}", with_input="{instruction}\n{input}")
"""The question as it stands (APT)."""

MATS = Template(
    name="mats",
    no_input="USER: <Speech><audio></Speech> {instruction}\nASSISTANT:",
    with_input="USER: <Speech><audio></Speech> {instruction}\n{input}\nASSISTANT:",
    answers="mats",
)
"""MATS's; its training put a tag before the question (`[audio caption] What does this audio describe?`)."""
