"""APT's front end: clips at several rates, resampled, scaled to a peak, and their filterbanks; Audio-MAE's own too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.audio.resample import resample
from alm_jax.models.apt import AUDIO_MAE_FRONTEND, FRONTEND
from golden.report import FILTERBANK, TOLERANCE, Computed, Report


def check(prefix: Path, report: Report) -> None:
    """Compare everything recorded."""
    sizes = json.loads(Path(f"{prefix}_config.json").read_text())
    io = dict(np.load(f"{prefix}_io.npz"))
    report.account(io, inputs=("*_wav_int16",), computed=_COMPUTED, results=_Results(sizes, io))


class _Results:
    """Our side of every recorded array; `clip` is what stands before them in their names (`a32k_4s`)."""

    def __init__(self, sizes: dict[str, Any], io: dict[str, np.ndarray]):
        self.io = io
        self.frontend = replace(
            FRONTEND,
            sample_rate=sizes["sampling_rate"],
            num_mels=sizes["n_mels"],
            frames=sizes["target_length"],
            peak=sizes["peak"],
            frame_length_ms=sizes["kaldi"]["frame_length"],
            frame_shift_ms=sizes["kaldi"]["frame_shift"],
            low_freq=sizes["kaldi"]["low_freq"],
            preemphasis=sizes["kaldi"]["preemphasis"],
            window=sizes["kaldi"]["window_type"],
        )
        self.fbank = cache(self._fbank)

    def recorded(self, clip: str) -> tuple[np.ndarray, int]:
        """(samples of the first channel, the only one that is heard; their rate)."""
        wave = self.io[f"{clip}_wav_int16"][0].astype(np.float32) / np.float32(32768)
        return wave, round(len(wave) / int(re.search(r"_(\d+)s$", clip)[1]))

    def wave(self, clip: str) -> np.ndarray:
        return resample(*self.recorded(clip), self.frontend.sample_rate)

    def _fbank(self, clip: str) -> np.ndarray:
        return self.frontend.numpy(self.wave(clip))

    def rows(self, clip: str, stride: str | None, first: str | None) -> np.ndarray:
        return self.fbank(clip)[None, :: int(stride or 1)][:, : first and int(first)]

    def mean_and_deviation(self, clip: str) -> np.ndarray:
        return np.array([self.fbank(clip).mean(), self.fbank(clip).std(ddof=1)])

    def scaled(self, clip: str, first: str) -> np.ndarray:
        return self.frontend.scaled(self.wave(clip))[None, : int(first)]

    def frames(self, clip: str) -> int:
        return len(replace(self.frontend, frames=None).numpy(self.wave(clip)))

    def audio_mae(self, clip: str, first: str) -> np.ndarray:
        """As Audio-MAE's own loader makes it at the clip's own rate, before it is normalised."""
        wave, rate = self.recorded(clip)
        native: KaldiFbank = replace(AUDIO_MAE_FRONTEND, sample_rate=rate, mean=0.0, std=1.0)
        return native.numpy(wave)[: int(first)]


_COMPUTED: list[Computed] = [
    (r"(\w+)_audiomae_raw_fbank_first(\d+)", _Results.audio_mae, FILTERBANK),
    (r"(\w+)_fbank(?:_stride(\d+))?(?:_first(\d+))?", _Results.rows, FILTERBANK),
    (r"(\w+)_fbank_mean_std", _Results.mean_and_deviation, FILTERBANK),
    (r"(\w+)_norm_wav_first(\d+)", _Results.scaled, TOLERANCE),
    (r"(\w+)_wav_len", lambda r, clip: len(r.wave(clip)), None),
    (r"(\w+)_n_frames_before_pad", _Results.frames, None),
]
