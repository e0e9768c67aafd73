"""Texts as published code writes them."""

from __future__ import annotations

import re
import unicodedata

_BLIP_WORDS = 50


def blip_caption(text: str, max_words: int = _BLIP_WORDS) -> str:
    """A caption as LAVIS trains on it (`BlipCaptionProcessor.pre_caption`): lower case, without most punctuation
    (commas stay), one space between words, cut to `max_words`. APT's own yaml names it, and its loaders pass it by."""
    text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def mats_answer(text: str) -> str:
    """An answer as MATS's evaluation writes it (official `post_process`): the first letter alone is a capital, letters
    lose their accents (characters without an ASCII form are left out), and a comma has a space behind it alone."""
    text = unicodedata.normalize("NFKD", text.capitalize().strip()).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"\s*,\s*", ", ", text).split())
