"""Prompt templates: how a row's fields become the parts of an example."""

from __future__ import annotations

from dataclasses import dataclass

from alm_jax.core.sequence import Audio, Part, Text
from alm_jax.data.rows import AUDIO_MARK, AudioRow


@dataclass(frozen=True)
class Template:
    """A prompt with and without further input.

    Attributes:
        name: for records.
        no_input: the prompt, with `{instruction}`.
        with_input: the prompt of a row whose `input` is not empty, with `{instruction}` and `{input}`.
    """

    name: str
    no_input: str
    with_input: str

    def prompt(self, instruction: str, input: str = "") -> str:
        return (self.with_input if input else self.no_input).format(instruction=instruction, input=input)

    def parts(self, row: AudioRow, *, answer: bool = True) -> list[Part]:
        """The row's prompt with its clips, and its answer as the text to learn (`answer=False`: to be generated).

        A clip stands where its `<audio>` mark does; the clips of a row without marks come before the prompt.
        """
        prompt = self.prompt(row.instruction, row.input)
        if row.marks:
            leading, *following = prompt.split(AUDIO_MARK)
            parts: list[Part] = [Text(leading)] if leading else []
            for clip, text in enumerate(following):
                parts += [Audio(clip), Text(text)] if text else [Audio(clip)]
        else:
            parts = [*(Audio(clip) for clip in range(len(row.clips))), Text(prompt)]
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
    no_input="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    with_input="<|im_start|>user\n{instruction}\n\n{input}<|im_end|>\n<|im_start|>assistant\n",
)
"""One turn in the form of SmolLM2-Instruct and other ChatML models; the turn's end, `<|im_end|>`, is their EOS."""

PLAIN = Template(name="plain", no_input="{instruction}", with_input="{instruction}\n{input}")
"""The question as it stands (APT)."""
