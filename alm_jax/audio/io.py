"""Sound files to float32 samples and back.

soundfile decodes wav, flac, ogg, opus and mp3; what it does not know (m4a, mp4, webm, aac, ...) goes to PyAV. Clips of
prepared sets are read from their shards (`records.record_path`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from math import ceil, inf
from pathlib import Path

import numpy as np
import soundfile

from alm_jax.audio.records import record_audio, record_place
from alm_jax.audio.resample import filter_reach, resample
from alm_jax.core.errors import AudioError
from alm_jax.core.files import new_file

BLOCK = 1 << 16  # samples a channel decoded at once
DAMAGED = "the file is damaged or not audio: copy or download it again, or convert it to wav or flac"


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says of its length, and how it is stored."""

    seconds: float
    sample_rate: int  # Hz
    channels: int
    format: str  # container: "wav", "flac", "ogg", "mp3", ...


def audio_info(path: str | os.PathLike) -> AudioInfo:
    """Length and format of a sound file by its header, without decoding; the length of an mp3 without a Xing header is
    an estimate. Raises `AudioError` naming the file."""
    with closing(_open(path)) as reader:
        return reader.info


def load_audio(
    path: str | os.PathLike,
    *,
    sample_rate: int | None = None,
    channel: int | None = 0,
    max_seconds: float | None = None,
    offset_seconds: float = 0.0,
) -> tuple[np.ndarray, int]:
    """Decode one channel of a sound file: (float32 samples `[n]`, their rate in Hz).

    Integers become [-1, 1) (int16 / 32768). `channel=None` is the mean over channels; the default, the first, is what
    LTU's code takes. `sample_rate=None` keeps the file's rate. No more than `max_seconds` from `offset_seconds` on
    is decoded, and the result is that cut of the resampled file. Raises `AudioError`, naming the file and what to do,
    where it is missing, empty, not audio, damaged or truncated inside the asked part, without samples, or not finite.
    """
    if offset_seconds < 0 or (max_seconds is not None and not max_seconds > 0):
        raise AudioError(
            f"{path}: expected offset_seconds >= 0 and max_seconds > 0, got {offset_seconds} and {max_seconds}"
        )
    with closing(_open(path)) as reader:
        rate, channels = reader.info.sample_rate, reader.info.channels
        if channel is not None and not 0 <= channel < channels:
            raise AudioError(f"{path}: channel {channel} asked for, but the file has {channels} (counted from 0)")
        target = rate if sample_rate is None else sample_rate
        start, wanted = round(offset_seconds * rate), inf
        if max_seconds is not None:
            wanted = ceil(max_seconds * rate) + filter_reach(rate, target)
        blocks = [_mix(block, channel) for block in reader.blocks(start, wanted)]
        samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        if len(samples) < min(wanted, reader.promised - start):
            raise AudioError(
                f"{path}: truncated, its sound breaks off after {(start + len(samples)) / rate:.2f} s: "
                "copy or download it again"
            )
        if not len(samples):
            length = f"no sound from {offset_seconds} s on" if start else "no samples"
            raise AudioError(f"{path}: holds {length}: give another file or a smaller offset")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds samples that are not finite (NaN or infinity): export it again")
    samples = resample(samples, rate, target)
    if max_seconds is not None:
        samples = samples[: max(1, round(max_seconds * target))]
    return samples, target


def write_audio(path: str | os.PathLike, samples: np.ndarray, rate: int) -> None:
    """Write `samples [n]` or `[n, channels]` as 16-bit wav or flac, by the suffix of `path`, clipped to [-1, 1).

    What `load_audio` reads of a 16-bit file is written back bit for bit. The file appears whole or not at all.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    samples = np.asarray(samples)
    if kind not in ("wav", "flac"):
        raise AudioError(f"{path}: can be written as .wav or .flac, not {path.suffix!r}: change the name")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: refusing to write samples that are not finite (NaN or infinity)")
    encoded = BytesIO()
    try:
        pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
        soundfile.write(encoded, pcm, rate, format=kind, subtype="PCM_16")
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise AudioError(f"{path}: cannot encode samples {samples.shape} at {rate} Hz as {kind}: {error}") from error
    try:
        with new_file(path) as partial:
            partial.write_bytes(encoded.getbuffer())
    except OSError as error:
        raise AudioError(
            f"{path}: cannot be written ({error.strerror}): free space or choose another folder"
        ) from error


def _mix(block: np.ndarray, channel: int | None) -> np.ndarray:
    """One channel `[n]` of `[n, channels]`, or their mean."""
    return block.mean(axis=1) if channel is None else block[:, channel].copy()


def _open(path: str | os.PathLike) -> "_SoundFile | _Container | _Record":
    if place := record_place(path):
        return _Record(*place)
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}: give the path of a sound file that can be read") from error
    if empty:
        raise AudioError(f"{path}: the file is empty (0 bytes): copy or download it again")
    try:
        return _SoundFile(path)
    except soundfile.LibsndfileError as error:
        if error.code == 3:  # libsndfile's SF_ERR_MALFORMED_FILE: a format it knows
            raise AudioError(f"{path}: cannot be decoded ({error.error_string.rstrip('.')}): {DAMAGED}") from error
        reason = error.error_string.rstrip(".")
    try:
        import av  # noqa: F401
    except ImportError:
        raise AudioError(
            f"{path}: cannot be decoded ({reason}): if it is m4a, mp4, webm or aac, run "
            "`pip install 'alm_jax[video]'`; otherwise it is damaged or not audio"
        ) from None
    return _Container(path)


class _SoundFile:
    """Blocks of samples through libsndfile. `promised` is how many samples the header says there are: infinity for a
    stream without its last page, 0 where the header gives only an estimate."""

    def __init__(self, path):
        self.path = path
        self.file = soundfile.SoundFile(path)
        frames, rate = self.file.frames, self.file.samplerate
        self.info = AudioInfo(frames / rate, rate, self.file.channels, self.file.format.lower())
        self.promised = frames
        if self.file.format == "OGG" and not _ogg_ends(path):
            self.promised = inf
        elif self.file.format == "MP3" and not _mp3_counts_frames(path):
            self.promised = 0
        # libsndfile silently shortens a cut wav or aiff to what is there, and only its log tells.
        cut = re.search(r"\b(?:data|SSND) *: *(\d+) \(should be (\d+)\)", self.file.extra_info)
        if cut and int(cut[1]) < 0x7FFF0000:  # above: the unknown length that streaming writers leave
            self.promised = ceil(frames * int(cut[1]) / max(1, int(cut[2])))

    def blocks(self, start: int, count: float) -> Iterator[np.ndarray]:
        """Float32 `[n, channels]` from sample `start` on, at most `count` in all."""
        start, size, ahead = min(start, self.file.frames), BLOCK, 0
        if self.file.format == "MP3":
            # soundfile seeks after every read, and a decoder that has sought lacks the bits that a frame borrows from
            # those before it and stays mute for some: read at once, from a second ahead of the cut.
            size, ahead = self.file.frames, min(start, self.info.sample_rate)
        try:
            if start:
                self.file.seek(start - ahead)
            count += ahead
            while count > 0:
                block = self.file.read(min(count, size), dtype="float32", always_2d=True)
                if not len(block):
                    return
                yield block[ahead:]
                count, ahead = count - len(block), 0
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.path}: cannot be decoded ({error.error_string.rstrip('.')}): {DAMAGED}") from error

    def close(self):
        self.file.close()


class _Container:
    """The first audio stream of what libsndfile cannot read, through PyAV (FFmpeg)."""

    def __init__(self, path):
        import av

        self.path = path
        try:
            self.container = av.open(os.fspath(path))
        except av.FFmpegError as error:
            raise AudioError(f"{path}: cannot be decoded ({error.strerror}): {DAMAGED}") from error
        usable = (stream for stream in self.container.streams.audio if stream.codec_context and stream.channels)
        self.stream = next(usable, None)
        if self.stream is None:
            self.container.close()
            raise AudioError(f"{path}: holds no audio that can be decoded: give a file with sound")
        rate, kind = self.stream.rate, self.container.format.name
        if self.stream.duration is not None:
            seconds = float(self.stream.duration * self.stream.time_base)
        else:
            seconds = (self.container.duration or 0) / av.time_base
        self.info = AudioInfo(seconds, rate, self.stream.channels, kind)
        # A container's length counts what encoders add (a few ms) and its other streams; raw aac only estimates it.
        exact = len(self.container.streams) == 1 and kind != "aac"
        self.promised = (seconds - 0.1) * rate if exact else 0

    def blocks(self, start: int, count: float) -> Iterator[np.ndarray]:
        """Float32 `[n, channels]` from sample `start` on, at most `count` in all."""
        import av

        planar = av.AudioResampler(format="fltp")  # the stream's own rate and channels
        try:
            for frame in self.container.decode(self.stream):
                for part in planar.resample(frame):
                    block = part.to_ndarray().T
                    block, start = block[start:], max(0, start - len(block))
                    block = block[: min(count, len(block))]
                    if len(block):
                        yield block
                    count -= len(block)
                if count <= 0:
                    return
        except av.FFmpegError as error:
            raise AudioError(f"{self.path}: cannot be decoded ({error.strerror}): {DAMAGED}") from error

    def close(self):
        self.container.close()


class _Record:
    """A clip of a prepared set, whose record is read whole."""

    def __init__(self, shard: str, number: int, clip_id: str):
        self.samples, rate = record_audio(shard, number, clip_id)
        self.promised = len(self.samples)
        self.info = AudioInfo(self.promised / rate, rate, 1, "array_record")

    def blocks(self, start: int, count: float) -> Iterator[np.ndarray]:
        """Float32 `[n, 1]` from sample `start` on, at most `count` in all."""
        if start < self.promised:
            cut = self.samples[start : start + int(min(count, self.promised))]
            yield (cut.astype(np.float32) / 32768.0)[:, None]

    def close(self):
        """Nothing is open."""


def _ogg_ends(path) -> bool:
    """Whether the last page of an Ogg file is whole and marked as the end of its stream (RFC 3533, section 6)."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 17)))  # a page has at most 64 KiB
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[26]
    return len(page) >= 27 + segments + sum(page[27 : 27 + segments])


def _mp3_counts_frames(path) -> bool:
    """Whether an mp3 file opens with a Xing or Info header; without, its length is an estimate from its size."""
    with open(path, "rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":  # skip the tag, whose size is four bytes of seven bits
            tag = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
        file.seek(tag)
        first = file.read(4096)
    return b"Xing" in first or b"Info" in first
