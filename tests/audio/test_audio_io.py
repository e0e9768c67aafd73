"""Decoding: formats, rates, channels, cuts, and every kind of bad file."""

import builtins
import struct
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from alm_jax.audio import AudioInfo, audio_info, load_audio, resample, write_audio
from alm_jax.core.errors import AudioError

RATE = 16000
FORMATS = {  # suffix: (libsndfile format, subtype, error allowed: the step of integers, the loss of a codec)
    "wav": ("WAV", "PCM_16", 2**-15),
    "flac": ("FLAC", "PCM_16", 2**-15),
    "aiff": ("AIFF", "PCM_24", 2**-23),
    "ogg": ("OGG", "VORBIS", 0.03),
    "opus": ("OGG", "OPUS", 0.03),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.03),
}


def chirp(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """`[n, channels]`: a gliding tone in the first channel, that of half its size in the second, and so on."""
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * (300 + 200 * t) * t)
    return np.stack([wave / 2**i for i in range(channels)], axis=1)


def write(path, samples, rate=RATE, **kwargs):
    kind, subtype, _ = FORMATS[path.suffix[1:]]
    soundfile.write(path, samples, rate, format=kind, subtype=kwargs.pop("subtype", subtype), **kwargs)
    return path


def failure(path, **kwargs) -> str:
    """The message of the error that decoding `path` must raise: one line that names the file."""
    with pytest.raises(AudioError) as caught:
        load_audio(path, **kwargs)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("suffix", FORMATS)
def test_decodes_what_was_written(tmp_path, suffix):
    samples = chirp(5, channels=2)  # several blocks
    path = write(tmp_path / f"a.{suffix}", samples)
    wave, rate = load_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1 and rate == RATE
    assert len(wave) == len(samples)
    assert np.sqrt(np.mean((wave - samples[:, 0]) ** 2)) < FORMATS[suffix][2]
    info = audio_info(path)
    assert (info.seconds, info.sample_rate, info.channels) == (5.0, RATE, 2)
    np.testing.assert_allclose(wave, soundfile.read(path)[0][:, 0], atol=1e-6)
    assert info.format == FORMATS[suffix][0].lower()


@pytest.mark.parametrize("suffix", FORMATS)
def test_reads_a_cut_from_the_middle(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", chirp(3))
    whole, _ = load_audio(path)
    part, _ = load_audio(path, offset_seconds=1.25, max_seconds=0.5)
    np.testing.assert_allclose(part, whole[20000:28000], atol=1e-6)


def test_integers_are_scaled_by_their_range(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([-32768, -1, 0, 1, 32767], np.int16), 8000)
    np.testing.assert_array_equal(load_audio(path)[0] * 32768, [-32768, -1, 0, 1, 32767])


def test_takes_one_channel_or_the_mean(tmp_path):
    samples = chirp(0.2, channels=8)
    path = write(tmp_path / "a.flac", samples)
    np.testing.assert_allclose(load_audio(path, channel=3)[0], samples[:, 3], atol=1e-4)
    np.testing.assert_allclose(load_audio(path, channel=None)[0], samples.mean(axis=1), atol=1e-4)
    assert "channel 8" in failure(path, channel=8) and "has 8" in failure(path, channel=8)
    failure(path, channel=-1)


def test_reads_192_khz_with_8_channels_at_another_rate(tmp_path):
    path = write(tmp_path / "a.wav", chirp(0.3, rate=192000, channels=8), rate=192000)
    wave, rate = load_audio(path, sample_rate=RATE)
    assert rate == RATE and wave.shape == (4800,)
    np.testing.assert_array_equal(wave, resample(load_audio(path)[0], 192000, RATE))
    np.testing.assert_allclose(wave[200:-200], chirp(0.3)[200:-200, 0], atol=2e-3)


@pytest.mark.parametrize("file_rate", [8000, 16000, 22050, 44100])
def test_a_cut_equals_the_cut_of_the_resampled_file(tmp_path, file_rate):
    path = write(tmp_path / "a.flac", chirp(1.0, rate=file_rate), rate=file_rate)
    whole, _ = load_audio(path, sample_rate=RATE)
    part, _ = load_audio(path, sample_rate=RATE, max_seconds=0.4321)
    assert len(part) == round(0.4321 * RATE)
    np.testing.assert_allclose(part, whole[: len(part)], atol=1e-6)
    assert len(load_audio(path, sample_rate=RATE, max_seconds=99)[0]) == len(whole)


def test_reads_only_the_start_of_an_hour(tmp_path):
    path = tmp_path / "hour.wav"
    size = 3600 * 44100 * 2
    format_chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 44100, 88200, 2, 16)
    with open(path, "wb") as file:  # sparse
        file.write(
            struct.pack("<4sI4s", b"RIFF", size + 36, b"WAVE") + format_chunk + struct.pack("<4sI", b"data", size)
        )
        file.truncate(44 + size)
    load_audio(path, max_seconds=0.1, sample_rate=RATE)  # imports what it needs
    tracemalloc.start()
    wave, _ = load_audio(path, max_seconds=10.255, sample_rate=RATE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(wave) == 164080 and peak < 16e6
    assert audio_info(path) == AudioInfo(3600.0, 44100, 1, "wav")


def test_silent_and_tiny_files_are_sound(tmp_path):
    silent = write(tmp_path / "silent.wav", np.zeros(RATE))
    assert not load_audio(silent)[0].any()
    tiny = write(tmp_path / "tiny.wav", chirp(0.01))
    assert load_audio(tiny)[0].shape == (160,)
    assert load_audio(tiny, sample_rate=8000, max_seconds=1e-6)[0].shape == (1,)


def test_missing_directory_and_empty(tmp_path):
    assert "No such file" in failure(tmp_path / "missing.wav")
    assert "directory" in failure(tmp_path)
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "empty (0 bytes)" in failure(tmp_path / "empty.wav")
    with pytest.raises(AudioError, match="empty"):
        audio_info(tmp_path / "empty.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a", "txt"])
def test_what_is_not_audio(tmp_path, suffix):
    for name, content in {"text": b"no sound here\n" * 90, "noise": np.random.default_rng(0).bytes(20000)}.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        message = failure(path)
        assert "cannot be decoded" in message or "no audio" in message


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_truncated_files(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    whole = write(tmp_path / f"whole.{suffix}", 0.1 * rng.normal(size=10 * RATE)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    message = failure(path)
    assert "download it again" in message
    if share == 0.95:  # what comes before the cut is sound
        assert len(load_audio(path, max_seconds=2)[0]) == 2 * RATE


def test_float_wav_and_streamed_wav_without_a_length(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, chirp(1), RATE, subtype="FLOAT")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "truncated" in failure(path)
    write(path, chirp(1))
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # what FFmpeg leaves when it writes to a pipe
    path.write_bytes(content)
    assert len(load_audio(path)[0]) == RATE


def test_variable_rate_mp3_without_a_header_is_not_called_truncated(tmp_path):
    wave = np.concatenate([np.zeros(5 * RATE), np.random.default_rng(0).normal(size=5 * RATE) * 0.3])
    path = write(tmp_path / "a.mp3", wave, bitrate_mode="VARIABLE", compression_level=0.3)
    content = path.read_bytes()
    second = content.index(content[:2], 10)  # the first frame holds only the Xing header
    path.write_bytes(content[second:])
    assert abs(len(load_audio(path)[0]) - len(wave)) < 3000


def test_file_without_samples_and_offset_past_the_end(tmp_path):
    assert "no samples" in failure(write(tmp_path / "a.wav", np.zeros(0)))
    path = write(tmp_path / "b.wav", chirp(1))
    assert "no sound from 2" in failure(path, offset_seconds=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, value):
    samples = chirp(1)[:, 0]
    samples[9000] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert "not finite" in failure(path)
    assert len(load_audio(path, max_seconds=0.5)[0]) == 8000


@pytest.mark.parametrize("wrong", [{"max_seconds": 0.0}, {"max_seconds": float("nan")}, {"offset_seconds": -1.0}])
def test_wrong_cuts(tmp_path, wrong):
    assert "max_seconds > 0" in failure(write(tmp_path / "a.wav", chirp(0.1)), **wrong)


def encode(path, codec: str, samples: np.ndarray, rate: int = 48000, **options):
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), "fltp", "stereo")
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        split = av.AudioResampler(stream.format, "stereo", rate, frame_size=stream.codec_context.frame_size)
        for piece in (*split.resample(frame), *split.resample(None), None):
            container.mux(stream.encode(piece))
    return path


@pytest.mark.parametrize("suffix, codec", [("m4a", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("aac", "aac")])
def test_containers_that_need_pyav(tmp_path, suffix, codec):
    samples = chirp(2, rate=48000, channels=2)
    path = encode(tmp_path / f"a.{suffix}", codec, samples)
    wave, rate = load_audio(path)
    assert rate == 48000 and abs(len(wave) - 96000) < 4096
    start = 1024 if suffix == "aac" else 0  # raw aac cannot tell its encoder's delay
    assert np.sqrt(np.mean((wave[start : start + 90000] - samples[:90000, 0]) ** 2)) < 0.03
    half, _ = load_audio(path, channel=1, offset_seconds=0.5, max_seconds=0.25, sample_rate=RATE)
    assert half.shape == (4000,)
    whole, _ = load_audio(path, channel=1, offset_seconds=0.5, sample_rate=RATE)
    np.testing.assert_allclose(half, whole[:4000], atol=1e-6)
    assert abs(audio_info(path).seconds - 2) < 0.2 and audio_info(path).channels == 2

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "again" in failure(path)


def test_a_container_without_sound(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    assert "no audio" in failure(path)


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "av", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_av)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(3000))
    assert "pip install 'alm_jax[video]'" in failure(path)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_what_is_written_reads_back_bit_for_bit(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    samples = np.random.default_rng(0).integers(-32768, 32768, (1000, 2)).astype(np.int16)
    write_audio(path, samples / 32768, 22050)
    assert np.array_equal(soundfile.read(path, dtype="int16")[0], samples)
    write_audio(path, load_audio(path, channel=1)[0], 22050)
    wave, rate = load_audio(path)
    assert rate == 22050 and np.array_equal(wave * 32768, samples[:, 1])
    write_audio(path, np.array([-3.0, -1.0, 1.0, 3.0]), 22050)
    assert np.array_equal(load_audio(path)[0] * 32768, [-32768, -32768, 32767, 32767])


def test_writing_fails_whole_and_clearly(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_audio(path, np.zeros(10), RATE)
    before = path.read_bytes()
    for samples, rate, name in (
        (np.array([0.0, np.nan]), RATE, "a.wav"),
        (np.zeros((2, 3, 4)), RATE, "a.wav"),
        (np.zeros(10), 0, "a.wav"),
        (np.zeros(10), RATE, "a.mp3"),
        (np.zeros(10), RATE, "nowhere/a.wav"),
    ):
        with pytest.raises(AudioError, match=name):
            write_audio(tmp_path / name, samples, rate)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(AudioError, match="No space left"):
        write_audio(path, np.ones(10), RATE)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.wav"]
