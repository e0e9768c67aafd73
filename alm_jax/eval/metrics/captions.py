"""Captions against references: BLEU, ROUGE-L, METEOR, CIDEr-D, SPICE and SPIDEr, by `pycocoevalcap` (extra `eval`)."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alm_jax.core.errors import AlmError, UsageError

NO_JAVA = (
    "java is not on the PATH: METEOR is left out, and the other metrics count plain words (lower case, split at "
    "whatever is no letter, digit or apostrophe) in the place of the Penn Treebank tokenizer's: install a Java runtime"
)
NO_SPICE = (
    "SPICE and SPIDEr are left out: they need Java, and a folder with spice-1.0.jar and lib/ with Stanford CoreNLP "
    "3.6.0 (jar and models): give it as --spice DIR"
)
_SPICE_JAR = "spice-1.0.jar"

Tokenized = dict[int, list[str]]
"""Texts of each clip, tokens parted by blanks."""


@dataclass
class CaptionScores:
    """Scores of a corpus.

    Attributes:
        corpus: by metric, what publications print. each: by metric, one a clip; where the corpus score is no mean
            (BLEU, METEOR) they are those of the clips alone.
        notes: what was left out or done otherwise, and why.
    """

    corpus: dict[str, float] = field(default_factory=dict)
    each: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def score_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], spice: str | Path | None = None
) -> CaptionScores:
    """All metrics that can be had here.

    Args:
        captions: one a clip. references: of each clip one at least.
        spice: folder of SPICE's jars; None leaves SPICE and SPIDEr out.

    Raises:
        UsageError: `pycocoevalcap` is not installed, a clip has no reference, or the folder lacks a jar. AlmError: Java
            fails.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise UsageError(
            f"{len(captions)} captions, {len(references)} groups of references: give each clip one or more"
        )
    java = shutil.which("java")
    tokenize = _penn_treebank if java else _plain
    said = tokenize({i: [text] for i, text in enumerate(captions)})
    true = tokenize({i: list(group) for i, group in enumerate(references)})
    found = CaptionScores(notes=() if java else (NO_JAVA,))
    scorers: list[tuple[tuple[str, ...], Callable]] = [
        (("bleu_1", "bleu_2", "bleu_3", "bleu_4"), _bleu),
        (("rouge_l",), _scorer("rouge.rouge", "Rouge")),
        (("cider_d",), _scorer("cider.cider", "Cider")),
    ]
    if java:
        scorers.insert(2, (("meteor",), _scorer("meteor.meteor", "Meteor")))
    for names, score in scorers:
        corpus, each = score(true, said)
        found.corpus |= dict(zip(names, map(float, np.atleast_1d(corpus))))
        found.each |= dict(zip(names, np.atleast_2d(np.asarray(each, float))))
    if spice is None or not java:
        found.notes += (NO_SPICE,)
        return found
    found.each["spice"] = _spice(true, said, Path(spice), java)
    found.each["spider"] = (found.each["cider_d"] + found.each["spice"]) / 2
    found.corpus |= {name: float(found.each[name].mean()) for name in ("spice", "spider")}
    return found


def check_installed(spice: str | Path | None = None) -> None:
    """Raise UsageError where `pycocoevalcap` is not, or the folder lacks SPICE's jars."""
    _module("bleu.bleu")
    if spice is not None and not ((Path(spice) / _SPICE_JAR).is_file() and (Path(spice) / "lib").is_dir()):
        raise UsageError(f"--spice {spice}: holds no {_SPICE_JAR} with lib/ beside it; see docs/evaluation.md")


def _module(name: str):
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise UsageError(f"captions are scored by pycocoevalcap ({error}): pip install 'alm_jax[eval]'") from None


def _scorer(module: str, name: str) -> Callable:
    """`compute_score(references, captions)` of one of its classes: (corpus score, score of each)."""
    return lambda true, said: getattr(_module(module), name)().compute_score(true, said)


def _bleu(true: Tokenized, said: Tokenized):
    return _module("bleu.bleu").Bleu(4).compute_score(true, said, verbose=0)


def _penn_treebank(texts: Mapping[int, Sequence[str]]) -> Tokenized:
    tokenizer = _module("tokenizer.ptbtokenizer").PTBTokenizer()
    # Its input is a line a text: a line break in one would shift all that follow.
    lines = {i: [{"caption": " ".join(text.split()) or "."} for text in group] for i, group in texts.items()}
    return tokenizer.tokenize(lines)


def _plain(texts: Mapping[int, Sequence[str]]) -> Tokenized:
    return {i: [" ".join(re.findall(r"[\w']+", text.lower())) for text in group] for i, group in texts.items()}


def _spice(true: Tokenized, said: Tokenized, folder: Path, java: str) -> np.ndarray:
    """F of SPICE [N] by its own program, as `pycocoevalcap` calls it, from the user's folder."""
    check_installed(folder)
    asked = [{"image_id": i, "test": said[i][0], "refs": true[i]} for i in said]
    with tempfile.TemporaryDirectory() as scratch:
        given, out = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
        given.write_text(json.dumps(asked))
        command = [
            java,
            "-jar",
            "-Xmx8G",
            str((folder / _SPICE_JAR).resolve()),
            str(given),
            "-out",
            str(out),
            "-silent",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode or not out.is_file():
            told = " ".join((done.stderr or done.stdout).split())[-300:]
            raise AlmError(f"SPICE failed (exit code {done.returncode}): {told}; is all of CoreNLP in {folder}/lib?")
        scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(out.read_text())}
    return np.array([np.nan_to_num(float(scores[i])) for i in said])
