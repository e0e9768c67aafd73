"""Clips as a model hears them: windows of its front end, and places among the text of a question."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.audio.io import load_audio
from alm_jax.audio.resample import resample
from alm_jax.audio.segments import count_windows, split
from alm_jax.core.errors import AudioError, UsageError
from alm_jax.data.rows import AUDIO_MARK
from alm_jax.models.alm import FrontendConfig

_log = logging.getLogger(__name__)

FRAME_SECONDS = 0.025  # of every front end's frames

Clip = str | Path | np.ndarray | tuple[np.ndarray, int]
"""A file; samples [n] at the front end's rate; or (samples, rate)."""
Heard = TypeVar("Heard")


def windows(clip: Clip, frontend: FrontendConfig, segments: int = 1) -> np.ndarray:
    """What the front end makes of a clip: float32 [S, frames, mels].

    Args:
        segments: 1 hears the first window alone. With more a longer clip fills that many windows at most, one after the
            other, the last one padded (official `get_audio_embedding` of APT).

    Raises:
        AudioError: the clip cannot be used, or is longer than all segments. UsageError: windows of this front end
            cannot be put side by side.
    """
    check_segments(frontend, segments)
    # One frame more than fits tells a clip that is too long.
    heard = frontend if segments == 1 else replace(frontend, frames=segments * frontend.frames + 1)
    wave = samples(clip, frontend.sample_rate, heard.max_seconds)
    name = clip if isinstance(clip, str | Path) else "samples"
    if len(wave) < FRAME_SECONDS * frontend.sample_rate:
        _log.warning("%s: shorter than a frame (25 ms), the model hears next to nothing: give a longer clip", name)
    elif not wave.any():
        _log.warning("%s: silent, every sample is zero: give a clip with sound", name)
    if segments == 1:
        return frontend.numpy(wave)[None]
    count = count_windows(frontend, len(wave))
    if count > segments:
        seconds = segments * frontend.frames * frontend.hop / frontend.sample_rate
        raise AudioError(
            f"{name}: longer than {segments} segments, which are {seconds:g} s: cut it, or allow more segments "
            "(alm ask: --segments)"
        )
    return split(frontend, wave, count)


def check_segments(frontend: FrontendConfig, segments: int) -> None:
    """Raise UsageError where clips cannot be heard in so many windows."""
    if segments < 1:
        raise UsageError(f"segments is {segments}: expected 1 or more")
    if segments > 1 and not isinstance(frontend, KaldiFbank):
        raise UsageError(f"a model with {type(frontend).__name__} hears one window of a clip: leave segments out")


def samples(clip: Clip, rate: int, max_seconds: float | None = None) -> np.ndarray:
    """The clip's samples [n] at `rate`; of a file no more than `max_seconds`."""
    if isinstance(clip, str | Path):
        return load_audio(clip, sample_rate=rate, max_seconds=max_seconds)[0]
    given, own = clip if isinstance(clip, tuple) else (clip, rate)
    wave = np.asarray(given, np.float32)
    if wave.ndim != 1 or not wave.size or not np.isfinite(wave).all():
        raise AudioError(f"samples of shape {wave.shape}: expected finite numbers [n], one channel, n > 0")
    return wave if own == rate else resample(wave, own, rate)


def check_marks(text: str, clips: int) -> None:
    """Raise UsageError unless a question has a clip for each `<audio>` mark, or no mark."""
    marks = text.count(AUDIO_MARK)
    if marks and marks != clips:
        raise UsageError(
            f"the question holds {marks} {AUDIO_MARK} mark{'s' * (marks > 1)}, and {clips or 'no'} "
            f"clip{'s are' if clips != 1 else ' is'} given: give one clip a mark, or write no mark, then the clips "
            "come first"
        )


def with_examples(
    question: str, clips: Sequence[Heard], examples: Sequence[tuple[Heard, str]]
) -> tuple[str, list[Heard]]:
    """A question after examples, each a clip and the text that follows it, as `alm tasks --task few_shot` writes it.

    Raises:
        UsageError: the question's marks and its own clips differ in number, or an example's text is empty or marked.
    """
    if not examples:
        return question, list(clips)
    check_marks(question, len(clips))
    for _, text in examples:
        if not text.strip() or AUDIO_MARK in text:
            raise UsageError(f"an example's text is {text!r}: expected what is to be said of its clip, without marks")
    lead = "" if AUDIO_MARK in question else AUDIO_MARK * len(clips)
    before = "".join(f"{AUDIO_MARK}{text}" for _, text in examples)
    return f"{before}{lead}{question}", [*(clip for clip, _ in examples), *clips]
