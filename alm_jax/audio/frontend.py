"""Log-mel front ends: Kaldi's filterbank (LTU, AST, Audio-MAE), Whisper's, and librosa's in decibel (CLAP, PANNs).

Each has two forms that agree within 5e-3 (in decibel 0.022, which is as much): `numpy(wave)` for data workers, in
float64 inside, and `jax(waves, lengths)` for the accelerator: batched, jit-able, every row as if it were cut to its own
length. What else `jax` takes picks the kernel (`implementation` and `interpret` of `kernels.log_mel.log_mel`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax, vmap
from numpy.lib.stride_tricks import sliding_window_view

from alm_jax.audio.mel import htk_mel_filters, kaldi_mel_filters, slaney_mel_filters
from alm_jax.core.errors import AudioError, ConfigError
from alm_jax.kernels.log_mel import log_mel

KALDI_FLOOR = float(np.finfo(np.float32).eps)  # least mel energy before the logarithm
_SILENT = 1e-8  # keeps silence from being divided by zero
TOO_SHORT = 0.01  # filterbank of a clip without one whole frame, before normalisation (LTU's and APT's loaders)


@dataclass(frozen=True)
class KaldiFbank:
    """`torchaudio.compliance.kaldi.fbank` without dither, padded with zeros or cut to `frames`, then (x - mean) / std.

    The defaults are LTU's (`data_collator.py` and its demo). Samples are in [-1, 1); frames lie wholly inside the clip;
    padding comes out as -mean / std, louder than silence. A clip shorter than one frame is 0.01 everywhere before
    normalisation. `high_freq` of 0 or less counts from Nyquist. With `frames=None` the NumPy form has as many rows as
    the clip has frames, the JAX form as many as fit into n samples. With `peak` the whole clip is first shifted to mean
    0 and scaled to that largest magnitude (APT: 0.5). `gain` is what samples are multiplied by before the floor under
    the energies: 32768 for Kaldi's own range of 16 bits, whose floor is that much deeper (BEATs).
    """

    sample_rate: int = 16000  # Hz
    num_mels: int = 128
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    low_freq: float = 20.0  # Hz
    high_freq: float = 0.0  # Hz
    preemphasis: float = 0.97
    window: Literal["hanning", "povey"] = "hanning"
    frames: int | None = 1024
    mean: float = -5.081
    std: float = 4.4849
    peak: float | None = None
    gain: float = 1.0

    def __post_init__(self):
        _check_sizes(self)
        if self.frame_samples < 8 or self.hop < 1:
            raise ConfigError(
                f"frame_length_ms={self.frame_length_ms}, frame_shift_ms={self.frame_shift_ms}: expected at least "
                f"8 samples and 1 sample at {self.sample_rate} Hz, got {self.frame_samples} and {self.hop}"
            )
        if not self.std > 0:
            raise ConfigError(f"std: expected a positive number, got {self.std!r}")
        if self.peak is not None and not self.peak > 0:
            raise ConfigError(f"peak: expected a positive number or None, got {self.peak!r}")
        if not self.gain > 0:
            raise ConfigError(f"gain: expected a positive number, got {self.gain!r}")
        if self.window not in ("hanning", "povey"):
            raise ConfigError(f"window: expected 'hanning' or 'povey', got {self.window!r}")
        low, high = self.band
        if not 0 <= low < high <= self.sample_rate / 2:
            raise ConfigError(
                f"low_freq, high_freq: {low} to {high} Hz is not inside 0 to {self.sample_rate / 2} Hz (Nyquist)"
            )

    @property
    def frame_samples(self) -> int:
        """Samples in a frame, rounded down as Kaldi does."""
        return int(self.sample_rate * self.frame_length_ms * 0.001)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next, rounded down."""
        return int(self.sample_rate * self.frame_shift_ms * 0.001)

    @property
    def n_fft(self) -> int:
        """The frame length rounded up to a power of two."""
        return 1 << (self.frame_samples - 1).bit_length()

    @property
    def band(self) -> tuple[float, float]:
        """Lower and upper edge of the filterbank in Hz."""
        high = self.high_freq if self.high_freq > 0 else self.high_freq + self.sample_rate / 2
        return self.low_freq, high

    @property
    def max_seconds(self) -> float | None:
        """Seconds of a clip that the features depend on; None = all."""
        if self.frames is None or self.peak is not None:
            return None
        return ((self.frames - 1) * self.hop + self.frame_samples) / self.sample_rate

    @property
    def feature_shape(self) -> tuple[int | None, int]:
        """(frames, mels)."""
        return self.frames, self.num_mels

    def numpy(self, wave: np.ndarray) -> np.ndarray:
        """`wave [n]` at `sample_rate` -> `[frames, num_mels]` float32."""
        wave = self.scaled(_one_channel(wave))
        if len(wave) < self.frame_samples:
            rows = np.full((self.frames or 0, self.num_mels), TOO_SHORT)
        else:
            rows = sliding_window_view(wave, self.frame_samples)[:: self.hop][: self.frames]
            rows = _by_blocks(self._log_mel, rows)
            rows = _fit(rows, self.frames or len(rows))
        return ((rows - self.mean) / self.std).astype(np.float32)

    def jax(self, waves: Array, lengths: Array, **kernel: Any) -> Array:
        """`waves [B, n]`, of which row b holds `lengths[b]` samples -> `[B, frames, num_mels]` float32."""
        waves, lengths = _batch(waves, lengths)
        rows = self.frames
        if rows is None:
            rows = max(0, 1 + (waves.shape[1] - self.frame_samples) // self.hop)
        # The official code removes the clip's mean as well as each frame's; here it keeps float32 sums small.
        mean = jnp.sum(waves, axis=1, keepdims=True) / jnp.maximum(lengths, 1)[:, None]
        waves = waves - mean
        if self.peak is not None:
            true = jnp.arange(waves.shape[1]) < lengths[:, None]
            waves *= self.peak / (jnp.max(jnp.abs(waves), axis=1, keepdims=True, initial=0, where=true) + _SILENT)
        found = log_mel(
            waves,
            _window(self.window, self.frame_samples),
            self.gain**2 * self._filters(),
            hop=self.hop,
            n_fft=self.n_fft,
            rows=rows,
            preemphasis=self.preemphasis,
            floor=KALDI_FLOOR,
            **kernel,
        )
        count = jnp.maximum(0, 1 + (lengths - self.frame_samples) // self.hop)[:, None, None]
        padding = jnp.where(count > 0, 0.0, TOO_SHORT)
        found = jnp.where(jnp.arange(rows)[:, None] < count, found, padding)
        return (found - self.mean) / self.std

    def scaled(self, wave: np.ndarray) -> np.ndarray:
        """The clip `[n]` as its frames are taken from it: as it is, or with mean 0 and the largest magnitude `peak`."""
        if self.peak is None or not len(wave):
            return wave
        wave = wave - wave.mean(dtype=np.float64)
        return self.peak * wave / (np.abs(wave).max() + _SILENT)

    def _log_mel(self, frames: np.ndarray) -> np.ndarray:
        frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float64)
        frames = frames - self.preemphasis * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        power = np.abs(np.fft.rfft(frames * _window(self.window, self.frame_samples), self.n_fft)) ** 2
        return np.log(np.maximum(self.gain**2 * (power @ self._filters()), KALDI_FLOOR))

    def _filters(self) -> np.ndarray:
        return kaldi_mel_filters(self.num_mels, self.n_fft, self.sample_rate, *self.band)


@dataclass(frozen=True)
class WhisperLogMel:
    """Whisper's log-mel (`whisper/audio.py`): periodic Hann 400, hop 160, floor 8 below the maximum, (x + 4) / 4.

    `padding="audio"` pads or cuts the clip to `frames` hops first: Whisper's 30 s window (3000 frames).
    `padding="mel"` takes spectrogram and maximum over the whole clip and then pads it with zeros or cuts it: LTU-AS
    (`transcribe_audio`, 1000 frames). With `frames=None` nothing is padded or cut. Where the clip itself is
    transformed it is mirrored at both ends; one of at most 200 samples (12.5 ms) cannot be and gives zeros.
    """

    num_mels: int = 80
    frames: int | None = 3000
    padding: Literal["audio", "mel"] = "audio"

    sample_rate: ClassVar[int] = 16000  # Hz
    hop: ClassVar[int] = 160
    n_fft: ClassVar[int] = 400

    def __post_init__(self):
        _check_sizes(self)
        if self.padding not in ("audio", "mel"):
            raise ConfigError(f"padding: expected 'audio' or 'mel', got {self.padding!r}")

    @property
    def max_seconds(self) -> float | None:
        """Seconds of a clip that the features depend on; None = all."""
        if self.frames is None or self.padding == "mel":
            return None
        return self.frames * self.hop / self.sample_rate

    @property
    def feature_shape(self) -> tuple[int | None, int]:
        """(frames, mels)."""
        return self.frames, self.num_mels

    def numpy(self, wave: np.ndarray) -> np.ndarray:
        """`wave [n]` at 16 kHz -> `[frames, num_mels]` float32."""
        wave = _one_channel(wave)
        if self.frames is not None and self.padding == "audio":
            wave = _fit(wave, self.frames * self.hop)
        reach = self.n_fft // 2
        if len(wave) > reach:
            wave = np.pad(wave, reach, mode="reflect")
            rows = sliding_window_view(wave, self.n_fft)[:: self.hop][:-1]  # Whisper drops the last frame
            rows = _by_blocks(self._log_mel, rows)
            rows = (np.maximum(rows, rows.max() - 8.0) + 4.0) / 4.0
        else:
            rows = np.zeros((0, self.num_mels))
        return _fit(rows, len(rows) if self.frames is None else self.frames).astype(np.float32)

    def jax(self, waves: Array, lengths: Array, **kernel: Any) -> Array:
        """`waves [B, n]`, of which row b holds `lengths[b]` samples -> `[B, frames, num_mels]` float32."""
        waves, lengths = _batch(waves, lengths)
        if self.frames is not None and self.padding == "audio":
            waves = _fit_axis1(waves, self.frames * self.hop)
            lengths = jnp.full_like(lengths, waves.shape[1])
        rows, reach = waves.shape[1] // self.hop, self.n_fft // 2
        filters = slaney_mel_filters(self.num_mels, self.n_fft, self.sample_rate)
        found = _log10_mel(_reflected(waves, lengths, reach), filters, self.hop, self.n_fft, rows, kernel)
        count = jnp.where(lengths > reach, lengths // self.hop, 0)[:, None, None]
        true = jnp.arange(rows)[:, None] < count
        peak = jnp.max(jnp.where(true, found, -jnp.inf), axis=(1, 2), keepdims=True, initial=-jnp.inf)
        found = jnp.where(true, (jnp.maximum(found, peak - 8.0) + 4.0) / 4.0, 0.0)
        return found if self.frames is None else _fit_axis1(found, self.frames)

    def _log_mel(self, frames: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(frames * _window("periodic", self.n_fft))) ** 2
        return np.log10(np.maximum(power @ slaney_mel_filters(self.num_mels, self.n_fft, self.sample_rate), 1e-10))


@dataclass(frozen=True)
class LibrosaLogMel:
    """Log-mel in decibel as librosa and `torchlibrosa` compute it: periodic Hann, power, 10 log10, floor -100.

    The clip is cut to its first `seconds` or filled up to them, and mirrored at both ends. With `seconds=None` it is
    taken as it is; one of at most `n_fft / 2` samples cannot be mirrored and has no rows. Both CLAPs draw the part of a
    longer clip at random: give that part. The defaults are MS-CLAP 2023's (`CLAPWrapper`, `HTSATWrapper`), which
    computes its filters for 32 kHz although its sound has 44.1 kHz.

    Attributes:
        sample_rate: in Hz. filter_rate: for which the filters are computed, if it is another.
        n_fft, hop: in samples. low_freq, high_freq: edges of the filterbank in Hz.
        mel_scale: Slaney's filters, of area 1, or HTK's, of peak 1 (LAION CLAP with fusion).
        padding: how a short clip is filled up: `repeat` until it is full, `repeatpad` as often as it fits whole and
            then with zeros, or `pad` with zeros.
    """

    sample_rate: int = 44100
    filter_rate: int | None = 32000
    n_fft: int = 1024
    hop: int = 320
    num_mels: int = 64
    low_freq: float = 50.0
    high_freq: float = 14000.0
    mel_scale: Literal["slaney", "htk"] = "slaney"
    seconds: float | None = 7.0
    padding: Literal["repeat", "repeatpad", "pad"] = "repeat"

    def __post_init__(self):
        _check_sizes(self)
        if self.hop < 1 or self.n_fft < 8 or self.n_fft % 8:
            raise ConfigError(f"n_fft={self.n_fft}, hop={self.hop}: expected a multiple of 8, and at least 1 sample")
        if not 0 <= self.low_freq < self.high_freq <= self.sample_rate / 2:
            raise ConfigError(
                f"low_freq, high_freq: {self.low_freq} to {self.high_freq} Hz is not inside 0 to "
                f"{self.sample_rate / 2} Hz (Nyquist)"
            )
        if self.mel_scale not in ("slaney", "htk"):
            raise ConfigError(f"mel_scale: expected 'slaney' or 'htk', got {self.mel_scale!r}")
        if self.padding not in ("repeat", "repeatpad", "pad"):
            raise ConfigError(f"padding: expected 'repeat', 'repeatpad' or 'pad', got {self.padding!r}")
        if self.samples is not None and self.samples <= self.n_fft // 2:
            raise ConfigError(f"seconds: expected more than n_fft / 2 samples or None, got {self.seconds!r}")

    @property
    def samples(self) -> int | None:
        """Samples of the clip that is transformed; None = all of it."""
        return None if self.seconds is None else round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int | None:
        """Frames of such a clip."""
        return None if self.samples is None else 1 + self.samples // self.hop

    @property
    def max_seconds(self) -> float | None:
        """Seconds of a clip that the features depend on; None = all."""
        return self.seconds

    @property
    def feature_shape(self) -> tuple[int | None, int]:
        """(frames, mels)."""
        return self.frames, self.num_mels

    def numpy(self, wave: np.ndarray) -> np.ndarray:
        """`wave [n]` at `sample_rate` -> `[frames, num_mels]` float32."""
        wave, reach = _one_channel(wave), self.n_fft // 2
        if self.samples is not None:
            wave = _fit(np.tile(wave, self._repeats(max(1, len(wave)))), self.samples)
        if len(wave) <= reach:
            return np.zeros((0, self.num_mels), np.float32)
        rows = sliding_window_view(np.pad(wave, reach, mode="reflect"), self.n_fft)[:: self.hop]
        return _by_blocks(self._log_mel, rows).astype(np.float32)

    def jax(self, waves: Array, lengths: Array, **kernel: Any) -> Array:
        """`waves [B, n]`, of which row b holds `lengths[b]` samples -> `[B, frames, num_mels]` float32.

        Rows past a clip's own last frame are zero where `seconds` is None.
        """
        waves, lengths = _batch(waves, lengths)
        if self.samples is not None:
            sample, whole = jnp.arange(self.samples), jnp.maximum(lengths, 1)[:, None]
            heard = jnp.take_along_axis(_fit_axis1(waves, max(1, waves.shape[1])), sample % whole, axis=1)
            waves = jnp.where(sample < self._repeats(whole) * lengths[:, None], heard, 0.0)
            lengths = jnp.full_like(lengths, self.samples)
        rows, reach = 1 + waves.shape[1] // self.hop, self.n_fft // 2
        found = 10.0 * _log10_mel(_reflected(waves, lengths, reach), self.filters(), self.hop, self.n_fft, rows, kernel)
        count = jnp.where(lengths > reach, 1 + lengths // self.hop, 0)[:, None, None]
        return jnp.where(jnp.arange(rows)[:, None] < count, found, 0.0)

    def _repeats(self, length):
        """How often a clip of `length` samples is laid behind itself, an int or an array of them."""
        if self.padding == "pad":
            return 1
        whole = self.samples // length
        return whole + (whole * length < self.samples if self.padding == "repeat" else whole == 0)

    def _log_mel(self, frames: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(frames * _window("periodic", self.n_fft))) ** 2
        return 10.0 * np.log10(np.maximum(power @ self.filters(), 1e-10))

    def filters(self) -> np.ndarray:
        """`[n_fft / 2 + 1, num_mels]` float64."""
        make = slaney_mel_filters if self.mel_scale == "slaney" else htk_mel_filters
        rate = self.filter_rate or self.sample_rate
        return make(self.num_mels, self.n_fft, rate, self.low_freq, self.high_freq)


def _log10_mel(waves: Array, filters: np.ndarray, hop: int, n_fft: int, rows: int, kernel: dict[str, Any]) -> Array:
    """Whisper's and librosa's: `[B, rows, mels]` of periodic Hann windows, no less than -10."""
    options = {"hop": hop, "n_fft": n_fft, "rows": rows, "floor": 1e-10, **kernel}
    return log_mel(waves, _window("periodic", n_fft), filters, **options) / np.float32(np.log(10))


def _reflected(waves: Array, lengths: Array, reach: int) -> Array:
    """`[B, reach + n + reach]`: each row mirrored around its first sample and around its own last one."""
    n = waves.shape[1]
    room = jnp.pad(waves, ((0, 0), (0, 2 * reach)))

    def mirror_end(row, length):
        tail = lax.dynamic_slice(row, (length - 1 - reach,), (reach,))[::-1]
        return lax.dynamic_update_slice(row[: n + reach], tail, (length,))

    return jnp.concatenate([room[:, 1 : reach + 1][:, ::-1], vmap(mirror_end)(room, lengths)], axis=1)


@lru_cache(maxsize=16)
def _window(kind: str, n: int) -> np.ndarray:
    """`[n]` float64: "hanning" and "povey" (its 0.85th power) are symmetric as in Kaldi, "periodic" is torch's Hann."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n if kind == "periodic" else n - 1))
    window = window**0.85 if kind == "povey" else window
    window.setflags(write=False)
    return window


def _by_blocks(transform: Callable, frames: np.ndarray, size: int = 2048) -> np.ndarray:
    """Transform overlapping frames a block at a time, so that an hour of sound needs little memory."""
    return np.concatenate([transform(frames[i : i + size]) for i in range(0, len(frames), size)])


def _fit(array: np.ndarray, length: int) -> np.ndarray:
    """Cut or pad with zeros to `length` along the first axis."""
    missing = max(0, length - len(array))
    return np.pad(array[:length], [(0, missing)] + [(0, 0)] * (array.ndim - 1))


def _fit_axis1(array: Array, length: int) -> Array:
    """Cut or pad with zeros to `length` along the second axis."""
    missing = max(0, length - array.shape[1])
    return jnp.pad(array[:, :length], [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2))


def _one_channel(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave)
    if wave.ndim != 1:
        raise AudioError(f"a front end takes one channel, samples [n]; got shape {wave.shape}")
    return wave


def _batch(waves: Array, lengths: Array) -> tuple[Array, Array]:
    """Float32 waves `[B, n]`, zero past each row's length, and lengths `[B]`."""
    waves, lengths = jnp.asarray(waves, jnp.float32), jnp.asarray(lengths)
    if waves.ndim != 2 or lengths.shape != waves.shape[:1]:
        raise AudioError(f"expected waves [B, n] and lengths [B], got {waves.shape} and {lengths.shape}")
    return jnp.where(jnp.arange(waves.shape[1]) < lengths[:, None], waves, 0.0), lengths


def _check_sizes(config: KaldiFbank | WhisperLogMel | LibrosaLogMel) -> None:
    for name in ("sample_rate", "num_mels", "frames"):
        value = getattr(config, name)
        if value is None and name == "frames":
            continue
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected a positive whole number, got {value!r}")
