"""Audio fingerprints: the peaks of a clip's spectrogram, and which clips share a recording by them.

Peaks as of Wang 2003 ("An industrial-strength audio search algorithm"): they outlive codecs, gains and other sample
rates, and a cut of a clip keeps those inside it. Clips are looked up by triples of neighbouring peaks (Six and Leman
2014, "Panako"); a pair that several triples agree on is compared peak by peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from alm_jax.audio.resample import resample

FORMAT = 1
"""Version of fingerprints: those of others are not compared."""
RATE = 8000  # Hz; what is above 4 kHz many copies of a recording have lost
WINDOW, HOP = 512, 128
MAX_SECONDS = 600.0
"""Of longer clips only the beginning is looked at."""

LEAST = 6
"""Peaks that coincide in a match, at least."""

_FLOOR_DB = -80.0  # below full scale: what is softer is silence, dither, or a codec's own
_RANGE_DB = 45.0  # peaks are within this of the loudest point around
_AROUND = 32  # frames on each side in which the loudest point is looked for
_APART = (6, 8)  # a peak is the highest point of so many frames and bins on each side
_LOWEST = 6  # bin; below are hum and rumble, which some copies have filtered out

_NEXT = 5  # a triple is a peak and two of the next so many
_LONGEST = 63  # frames from its first peak to its last
_ENOUGH = 200  # triples of a clip, and an eighth of what it has, are looked up
_PART = 1024  # clips whose triples are made at a time
_COMMON = 64  # a triple that is found in more places says nothing
_SPAN = 1 << 18  # more than all shifts, in frames
_JITTER = 2  # frames by which the same peaks' shifts differ
_NEAR = np.array([frame * 256 + bin for frame in (-1, 0, 1) for bin in (-1, 0, 1)])  # peaks that coincide
_VOTES = 2  # triples that agree on a shift make a pair to compare
_ALIKE = 0.4  # share of the peaks in what two clips have in common


class Match(NamedTuple):
    """A clip that shares a recording with a known one.

    Attributes:
        clip, known: their numbers.
        shift: seconds by which the known clip begins later in the recording.
        peaks: how many coincide. alike: their share of the peaks in what the two have in common.
    """

    clip: int
    known: int
    shift: float
    peaks: int
    alike: float


def fingerprint(samples: np.ndarray, rate: int) -> np.ndarray:
    """The peaks of `samples` [n] at `rate` Hz: uint32 [peaks], ascending, each `frame << 8 | bin`.

    Ten seconds of sound have 100 to 200, silence has none.
    """
    from scipy.ndimage import maximum_filter, maximum_filter1d

    level = _spectrogram(resample(samples[: int(MAX_SECONDS * rate)], rate, RATE))
    loudest = maximum_filter1d(level.max(axis=1), 2 * _AROUND + 1)
    highest = maximum_filter(level, [2 * n + 1 for n in _APART])
    peaks = (level == highest) & (level > np.maximum(loudest - _RANGE_DB, _FLOOR_DB)[:, None])
    peaks[:, :_LOWEST] = False
    frame, bin = np.nonzero(peaks)
    return (frame << 8 | bin).astype(np.uint32)


def _spectrogram(wave: np.ndarray) -> np.ndarray:
    """dB below full scale, float32 [frames, WINDOW / 2]; a clip shorter than a frame is padded."""
    wave = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window)[:, :-1]) ** 2
    return 10 * np.log10(power / (window.sum() / 2) ** 2 + np.float32(1e-12))


class Known:
    """Clips to be found again, by their fingerprints."""

    def __init__(self, prints: Sequence[np.ndarray]):
        self._prints = prints
        parts = [_triples(prints[start : start + _PART], start) for start in range(0, len(prints) or 1, _PART)]
        triples, clips, frames = (np.concatenate(part) for part in zip(*parts))
        order = np.argsort(triples, kind="stable")
        triples = triples[order]
        starts = np.flatnonzero(np.r_[True, triples[1:] != triples[:-1]])
        counts = np.diff(np.r_[starts, len(triples)])
        rare = np.repeat(counts <= _COMMON, counts)
        self._triples, order = triples[rare], order[rare]
        self._clips, self._frames = clips[order], frames[order]

    def find(self, prints: Sequence[np.ndarray]) -> list[Match]:
        """The matches of clips, by clip and known clip, each pair once."""
        found = []
        for clip, known, frames in self._candidates(prints):
            if (match := _compare(prints[clip], self._prints[known], frames)) is not None:
                found.append(Match(clip, known, *match))
        return sorted(found)

    def _candidates(self, prints: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
        """(clip, known, shift in frames) of pairs that several triples agree on."""
        triples, clips, frames = _triples(prints)
        order = np.argsort(triples, kind="stable")  # looked up in order, the search stays in the cache
        triples, clips, frames = triples[order], clips[order], frames[order]
        first = np.searchsorted(self._triples, triples)
        counts = np.searchsorted(self._triples, triples, side="right") - first
        here = np.repeat(np.arange(len(triples)), counts)
        there = np.arange(len(here)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        pairs = clips[here].astype(np.int64) * len(self._prints) + self._clips[there]
        votes = np.sort(pairs * _SPAN + frames[here] - self._frames[there] + _SPAN // 2)
        agree = np.searchsorted(votes, votes + _JITTER, side="right") - np.arange(len(votes))
        votes, agree = votes[agree >= _VOTES], agree[agree >= _VOTES]
        pairs, shifts = np.divmod(votes, _SPAN)
        last = np.lexsort((agree, pairs))  # of each pair, the shift of most votes
        last = last[np.diff(pairs[last], append=-1) != 0]
        clips, known = np.divmod(pairs[last], len(self._prints))
        return list(zip(clips.tolist(), known.tolist(), (shifts[last] - _SPAN // 2).tolist()))


def _compare(clip: np.ndarray, known: np.ndarray, about: int) -> tuple[float, int, float] | None:
    """(shift in seconds, peaks that coincide, their share) at the best shift of about so many frames; None if these
    are different recordings."""
    clip, known = clip.astype(np.int64), known.astype(np.int64)
    frames, places = clip >> 8, known >> 8
    found = []
    for shift in range(about - _JITTER, about + _JITTER + 1):
        begin, end = max(frames[0] - shift, places[0]) - 1, min(frames[-1] - shift, places[-1]) + 1
        moved = clip[(frames - shift >= begin) & (frames - shift <= end)] - (shift << 8)
        held = known[(places >= begin) & (places <= end)]
        near = int(np.isin(moved[:, None] + _NEAR, held).any(axis=1).sum())
        found.append((near, 2 * near / max(1, len(moved) + len(held)), -abs(shift - about), shift))
    peaks, alike, _, shift = max(found)
    if peaks < LEAST or alike < _ALIKE:
        return None
    return shift * HOP / RATE, peaks, alike


def _triples(prints: Sequence[np.ndarray], first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of triples, uint32 [n], the number of the clip that each is of, counted from `first` on, and the frame
    where it begins, int32 both."""
    peaks = np.concatenate([np.zeros(0, np.uint32), *prints]).astype(np.int64)
    clips = np.repeat(np.arange(len(prints)), [len(each) for each in prints])
    frames, bins = peaks >> 8, peaks & 255
    found = []
    for second, third in combinations(range(1, _NEXT + 1), 2):
        n = max(0, len(peaks) - third)
        a, b, c = (slice(i, n + i) for i in (0, second, third))
        to_b, to_c = frames[b] - frames[a], frames[c] - frames[a]
        good = (clips[a] == clips[c]) & (to_c > 0) & (to_c <= _LONGEST)
        packed = (((bins[a] << 8 | bins[b]) << 8 | bins[c]) << 6 | to_b) << 6 | to_c
        hashed = (packed.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        found.append((hashed[good].astype(np.uint32), clips[a][good], frames[a][good]))
    triples, clips, frames = (np.concatenate(part) for part in zip(*found))
    # Of many the lowest are enough: of what two clips have in common these are the same.
    counts = np.bincount(clips, minlength=len(prints))
    share = (_ENOUGH + counts / 8) / np.maximum(counts, 1)
    kept = triples < (share * 2.0**32)[clips]
    return triples[kept], (clips[kept] + first).astype(np.int32), frames[kept].astype(np.int32)
