"""Texts in the place of clips: what an encoder that reads them (a CLAP) is given where training hears nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from alm_jax.core.errors import DataError
from alm_jax.data.rows import read_rows
from alm_jax.data.tokenizer import Tokenizer

NO_TOKEN = -1


@dataclass(frozen=True)
class Captions:
    """The front end of texts: token ids, between the tokenizer's own opening and ending.

    A text of more than `tokens` loses its end, so that its ending is read all the same; MS-CLAP's code fails on it.

    Attributes:
        tokenizer: the encoder's. tokens: of the longest text, opening and ending counted.
        gap: written behind a text, before the ending (MS-CLAP: a space).
    """

    tokenizer: Tokenizer = field(repr=False)
    tokens: int
    gap: str = ""
    fingerprint: str = field(init=False)
    dtype: ClassVar[np.dtype] = np.dtype(np.int32)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", self.tokenizer.fingerprint)

    @property
    def feature_shape(self) -> tuple[int]:
        """(tokens,)."""
        return (self.tokens,)

    def numpy(self, text: str) -> np.ndarray:
        """A text -> ids int32 [tokens], `NO_TOKEN` behind its end.

        Raises:
            DataError: the text is empty.
        """
        if not text.strip():
            raise DataError("a caption is empty: give a text for each clip")
        words = self.tokenizer
        opening = [] if words.bos_id is None else [words.bos_id]
        ids = [*opening, *words.encode(text + self.gap)[: self.tokens - len(opening) - 1], words.eos_id]
        return np.pad(np.array(ids, np.int32), (0, self.tokens - len(ids)), constant_values=NO_TOKEN)


def read_texts(path: str | Path) -> list[str]:
    """The texts of a file: one a line, or the captions of rows (`data.rows`) in a `.json` or `.jsonl`.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    path = Path(path).expanduser()
    if path.suffix in (".json", ".jsonl"):
        texts = [caption for row in read_rows(path, need_output=False).rows for caption in row.captions]
    else:
        try:
            texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot read texts ({error})") from None
    if not texts:
        raise DataError(f"{path}: no texts; expected one a line, or rows with a caption")
    return texts
