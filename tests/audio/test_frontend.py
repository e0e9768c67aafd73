"""Log-mel front ends: recorded official filterbanks, transformers' extractor, and each form against the other."""

import json

import jax
import numpy as np
import pytest

from alm_jax.audio import KaldiFbank, LibrosaLogMel, WhisperLogMel, fused_log_mel, load_audio
from alm_jax.audio.mel import htk_mel_filters, kaldi_mel_filters, slaney_mel_filters
from alm_jax.core.errors import AudioError, ConfigError
from alm_jax.kernels.log_mel.reference import frame, windowed_power

# LTU's own float32 filterbank differs from a float64 one by up to 4e-3 in bins near silence, whose logarithms
# magnify rounding; the project's target for filterbanks is 5e-3.
TOLERANCE = 5e-3
CLIPS = ["sweep_3s_16k", "noiseburst_10s_16k", "mixed_17p3s_16k", "stereo_1s_44k1"]


def run_jax(frontend, waves: list[np.ndarray], extra: int = 0) -> np.ndarray:
    """The JAX form on rows of unequal length; what lies past a row's length is noise and must not matter."""
    lengths = np.array([len(wave) for wave in waves])
    batch = np.random.default_rng(9).normal(size=(len(waves), lengths.max() + extra)).astype(np.float32)
    for row, wave in zip(batch, waves):
        row[: len(wave)] = wave
    return np.asarray(jax.jit(frontend.jax)(batch, lengths))


def sounds() -> dict[str, np.ndarray]:
    rng, t = np.random.default_rng(0), np.arange(16000) / 16000
    return {
        "noise": 0.1 * rng.normal(size=16000),
        "tone": 0.99 * np.sin(2 * np.pi * 3000 * t),
        "burst": np.where((t > 0.3) & (t < 0.31), 0.9, 0) * rng.normal(size=16000),
        "offset": 0.9 + 1e-3 * rng.normal(size=9000),
        "clipped": 0.99 * np.sign(np.sin(2 * np.pi * 200 * t[:7777])),
        "silence": np.zeros(5000),
    }


def recorded(golden_ltu, name: str, kind: str) -> np.ndarray:
    """The official `[1024, 128]` filterbank: the recorded rows, then the recorded padding."""
    arrays = np.load(golden_ltu / "fbank/fbank_official.npz")
    rows = arrays[f"{name}__{kind}"]
    return np.pad(rows, ((0, 1024 - len(rows)), (0, 0)), constant_values=arrays["pad_value"].item())


@pytest.mark.golden
@pytest.mark.parametrize("name", CLIPS)
def test_kaldi_equals_ltu_at_the_native_rate(golden_ltu, name):
    wave, rate = load_audio(golden_ltu / f"fbank/{name}.wav")
    frontend = KaldiFbank(sample_rate=rate)
    truth = recorded(golden_ltu, name, "train")
    np.testing.assert_allclose(frontend.numpy(wave), truth, atol=TOLERANCE)
    np.testing.assert_allclose(run_jax(frontend, [wave])[0], truth, atol=TOLERANCE)


@pytest.mark.golden
def test_kaldi_equals_the_ltu_demo_on_a_resampled_file(golden_ltu):
    frontend = KaldiFbank()
    path = golden_ltu / "fbank/stereo_1s_44k1.wav"
    wave, _ = load_audio(path, sample_rate=frontend.sample_rate, max_seconds=frontend.max_seconds)
    truth = recorded(golden_ltu, "stereo_1s_44k1", "gradio")
    np.testing.assert_allclose(frontend.numpy(wave), truth, atol=TOLERANCE)
    np.testing.assert_allclose(run_jax(frontend, [wave])[0], truth, atol=TOLERANCE)


@pytest.mark.golden
def test_max_seconds_is_all_that_kaldi_needs(golden_ltu):
    path, frontend = golden_ltu / "fbank/mixed_17p3s_16k.wav", KaldiFbank()
    whole, part = load_audio(path)[0], load_audio(path, max_seconds=frontend.max_seconds)[0]
    assert len(part) == 1023 * 160 + 400
    np.testing.assert_array_equal(frontend.numpy(part), frontend.numpy(whole))
    one_less = frontend.numpy(part[:-1])
    np.testing.assert_allclose(one_less[-1], 5.081 / 4.4849, rtol=1e-6)  # the last frame has become padding


FRONTENDS = [
    KaldiFbank(frames=60),
    KaldiFbank(frames=120),
    KaldiFbank(frames=None, window="povey", num_mels=80, mean=0.0, std=1.0),
    KaldiFbank(sample_rate=32000, frames=70, high_freq=-400.0, frame_shift_ms=12.5),
    KaldiFbank(frames=60, peak=0.5),
    WhisperLogMel(frames=80, padding="audio"),
    WhisperLogMel(frames=80, padding="mel"),
    WhisperLogMel(frames=130, padding="mel"),
    WhisperLogMel(frames=None, num_mels=128),
    LibrosaLogMel(seconds=0.2),
    LibrosaLogMel(48000, None, hop=480, seconds=0.1, padding="repeatpad"),
    LibrosaLogMel(16000, None, n_fft=512, hop=160, high_freq=8000.0, seconds=1.1, padding="pad", mel_scale="htk"),
    LibrosaLogMel(32000, None, hop=320, seconds=None),
]


@pytest.mark.parametrize("frontend", FRONTENDS, ids=str)
def test_both_forms_agree_on_rows_of_any_length(frontend):
    waves = [wave.astype(np.float32) for wave in sounds().values()]
    lengths = (1, 100, 159, 160, 199, 200, 201, 320, 399, 400, 401, 559, 560, 799, 800, 801, 1200)
    waves += [waves[0][:n] for n in lengths]
    waves += [waves[0][:0]]
    batch = run_jax(frontend, waves, extra=77)
    if isinstance(frontend, LibrosaLogMel):
        tolerance = TOLERANCE * 10 / np.log(10)  # in decibel, the others being natural logarithms
    else:
        tolerance = TOLERANCE * 4.4849 / getattr(frontend, "std", 4.4849)  # it is meant for features on LTU's scale
    for row, wave in zip(batch, waves):
        alone = frontend.numpy(wave)
        assert alone.dtype == row.dtype == np.float32
        if frontend.frames is not None:
            assert alone.shape == row.shape == frontend.feature_shape
        np.testing.assert_allclose(row[: len(alone)], alone, atol=tolerance)
        assert np.isfinite(row).all()
    np.testing.assert_allclose(run_jax(frontend, waves[2:3])[0][:40], batch[2][:40], atol=1e-3)


def test_both_forms_agree_on_real_sounds(shared_sounds):
    paths = sorted(shared_sounds.glob("*/*.flac"))[::12]
    for frontend in (KaldiFbank(frames=200), WhisperLogMel(frames=200, padding="mel")):
        waves = [load_audio(path, sample_rate=16000, max_seconds=3)[0] for path in paths]
        for row, wave in zip(run_jax(frontend, waves), waves):
            np.testing.assert_allclose(row, frontend.numpy(wave), atol=TOLERANCE)


def test_kaldi_silence_padding_and_short_clips_are_the_published_constants():
    frontend = KaldiFbank()
    silence, short = np.zeros(16000, np.float32), np.ones(399, np.float32)
    for quiet, tiny in (
        (frontend.numpy(silence), frontend.numpy(short)),
        run_jax(frontend, [silence, short]),
    ):
        np.testing.assert_allclose(quiet[:98], -2.4217675, atol=1e-5)  # log(eps), normalised
        np.testing.assert_allclose(quiet[98:], 1.1329126, atol=1e-6)  # zero, normalised
        np.testing.assert_allclose(tiny, (0.01 + 5.081) / 4.4849, atol=1e-6)
    assert frontend.numpy(np.zeros(0, np.float32)).shape == (1024, 128)


def test_kaldi_gain_is_louder_samples_over_the_same_floor():
    """What BEATs hears: 16-bit samples, of which the floor hides digital silence alone."""
    frontend, louder = KaldiFbank(frames=60, gain=2.0**15), KaldiFbank(frames=60)
    waves = [1e-4 * sounds()["noise"], np.zeros(5000)]
    expected = [louder.numpy(2.0**15 * wave) for wave in waves]
    for row, wave, truth in zip(run_jax(frontend, waves), waves, expected):
        np.testing.assert_allclose(frontend.numpy(wave), truth, atol=1e-6)
        np.testing.assert_allclose(row, truth, atol=TOLERANCE)


def test_kaldi_mel_filters_at_16_khz():
    filters = kaldi_mel_filters(128, 512, 16000, 20.0, 8000.0)
    assert filters.shape == (257, 128)
    assert not filters[256].any() and np.flatnonzero(~filters.any(axis=0)).tolist() == [3]
    assert filters.min() == 0 and filters.max() <= 1
    # neighbouring triangles add up to one between the first and the last centre
    mel = 1127 * np.log1p(np.arange(256) * 16000 / 512 / 700)
    low, high = 1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700)
    inner = (mel > low + (high - low) / 129) & (mel < high - (high - low) / 129)
    np.testing.assert_allclose(filters[:256][inner].sum(axis=1), 1, atol=1e-12)


def test_windowed_power_is_the_squared_fft():
    rng = np.random.default_rng(3)
    for n, n_fft in ((400, 400), (400, 512), (1102, 2048), (5, 8)):
        frames, window = rng.normal(size=(3, 2, n)).astype(np.float32), rng.uniform(size=n)
        truth = np.abs(np.fft.rfft(frames * window, n_fft)) ** 2
        # relative to the loudest bin: float32 rounding over two sums of up to 512 products
        np.testing.assert_allclose(windowed_power(frames, window, n_fft) / truth.max(), truth / truth.max(), atol=5e-6)


def test_frame_cuts_at_every_hop():
    waves = np.arange(40.0).reshape(2, 20)
    frames = np.asarray(frame(waves, 7, 3, 6))
    padded = np.pad(waves, ((0, 0), (0, 10)))
    np.testing.assert_array_equal(frames, np.stack([padded[:, 3 * i : 3 * i + 7] for i in range(6)], axis=1))


def test_whisper_maximum_sees_the_whole_clip_only_when_the_mel_is_padded():
    rng = np.random.default_rng(4)
    wave = np.concatenate([1e-4 * rng.normal(size=16000), rng.normal(size=16000)]).astype(np.float32)
    early = {kind: WhisperLogMel(frames=90, padding=kind).numpy(wave) for kind in ("audio", "mel")}
    whole = WhisperLogMel(frames=None).numpy(wave)
    np.testing.assert_array_equal(early["mel"], whole[:90])
    assert np.abs(early["audio"] - whole[:90]).max() > 0.1
    padded = WhisperLogMel(frames=300, padding="mel").numpy(wave)
    assert padded.shape == (300, 80) and not padded[200:].any()


def test_features_of_a_long_clip_are_computed_in_blocks():
    wave = np.random.default_rng(5).normal(size=16000 * 60).astype(np.float32)
    for frontend in (KaldiFbank(frames=None), WhisperLogMel(frames=None)):
        rows, late = frontend.numpy(wave), frontend.numpy(wave[16000 * 40 :])
        np.testing.assert_allclose(rows[4002 : 4000 + 1900], late[2:1900], atol=1e-5)


def test_what_a_front_end_says_of_itself():
    assert LibrosaLogMel().feature_shape == (965, 64) and LibrosaLogMel().max_seconds == 7.0
    assert KaldiFbank().feature_shape == (1024, 128) and KaldiFbank().sample_rate == 16000
    assert KaldiFbank().max_seconds == pytest.approx(10.255) and KaldiFbank(frames=None).max_seconds is None
    assert KaldiFbank(peak=0.5).max_seconds is None  # the peak may come late
    assert WhisperLogMel().feature_shape == (3000, 80) and WhisperLogMel().max_seconds == 30.0
    assert WhisperLogMel(frames=1000, padding="mel").max_seconds is None and WhisperLogMel().sample_rate == 16000
    assert hash(KaldiFbank()) == hash(KaldiFbank())


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: KaldiFbank(window="hann"), "window"),
        (lambda: KaldiFbank(num_mels=0), "num_mels"),
        (lambda: KaldiFbank(frames=-1), "frames"),
        (lambda: KaldiFbank(high_freq=9000.0), "high_freq"),
        (lambda: KaldiFbank(frame_length_ms=0.0), "frame_length_ms"),
        (lambda: KaldiFbank(std=0.0), "std"),
        (lambda: KaldiFbank(peak=0.0), "peak"),
        (lambda: KaldiFbank(gain=0.0), "gain"),
        (lambda: WhisperLogMel(padding="zeros"), "padding"),
        (lambda: WhisperLogMel(frames=2.5), "frames"),
        (lambda: LibrosaLogMel(padding="zeros"), "padding"),
        (lambda: LibrosaLogMel(mel_scale="mel"), "mel_scale"),
        (lambda: LibrosaLogMel(n_fft=1001), "n_fft"),
        (lambda: LibrosaLogMel(seconds=0.01), "seconds"),
        (lambda: LibrosaLogMel(high_freq=23000.0), "high_freq"),
    ],
)
def test_a_wrong_field_is_named(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


@pytest.mark.parametrize("frontend", [KaldiFbank(), WhisperLogMel(), LibrosaLogMel()])
def test_a_wrong_shape_is_refused(frontend):
    with pytest.raises(AudioError, match="one channel"):
        frontend.numpy(np.zeros((2, 16000), np.float32))
    with pytest.raises(AudioError, match="lengths"):
        frontend.jax(np.zeros((2, 16000), np.float32), np.array([5]))


@pytest.mark.torch
@pytest.mark.parametrize("num_mels", [80, 128])
def test_whisper_equals_transformers(num_mels):
    pytest.importorskip("torch")
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    np.testing.assert_allclose(slaney_mel_filters(num_mels, 400, 16000), extractor.mel_filters, atol=1e-12)
    waves = [wave.astype(np.float32) for wave in sounds().values()]
    truth = extractor(waves, sampling_rate=16000, return_tensors="np").input_features.transpose(0, 2, 1)
    frontend = WhisperLogMel(num_mels=num_mels)
    # float32 against float64 eight decades below the maximum; transformers' own torch form is in float32
    np.testing.assert_allclose(np.stack([frontend.numpy(wave) for wave in waves]), truth, atol=1e-3)
    np.testing.assert_allclose(run_jax(frontend, waves), truth, atol=1e-3)


@pytest.mark.torch
def test_ast_equals_transformers():
    pytest.importorskip("torch")
    from transformers import ASTFeatureExtractor

    waves = [wave.astype(np.float32) for wave in sounds().values()]
    extractor = ASTFeatureExtractor(max_length=120)
    truth = extractor(waves, sampling_rate=16000, return_tensors="np").input_values
    frontend = KaldiFbank(frames=120, mean=extractor.mean, std=2 * extractor.std)
    np.testing.assert_allclose(np.stack([frontend.numpy(wave) for wave in waves]), truth, atol=TOLERANCE)
    np.testing.assert_allclose(run_jax(frontend, waves), truth, atol=TOLERANCE)


def clap_extractor(truncation, **options):
    """With the settings of `laion/clap-htsat-unfused` and `-fused`, but for a window of one second."""
    pytest.importorskip("torch")
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(max_length_s=1, frequency_min=50, truncation=truncation, **options)


def clap_waves(*seconds):
    t = np.arange(int(48000 * max(seconds))) / 48000
    wave = 0.1 * np.random.default_rng(1).normal(size=len(t)) + 0.5 * np.sin(2 * np.pi * 500 * t * (1 + t))
    return [wave[: int(48000 * length)].astype(np.float32) for length in seconds]


# In decibel, of which the float32 of either side keeps five digits at the floor of -100.
DECIBEL = 1e-3


@pytest.mark.torch
@pytest.mark.parametrize("padding", ["repeat", "repeatpad", "pad"])
def test_clap_equals_transformers(monkeypatch, padding):
    monkeypatch.setattr(np.random, "randint", lambda *range: 0)  # the part of a long clip: its first
    waves = clap_waves(0.011, 0.3, 0.6, 1.0, 2.5)
    extractor = clap_extractor("rand_trunc", padding=padding)
    truth = extractor(waves, sampling_rate=48000, return_tensors="np").input_features[:, 0]
    frontend = LibrosaLogMel(48000, None, hop=480, seconds=1.0, padding=padding)
    assert truth.shape[1:] == frontend.feature_shape
    np.testing.assert_allclose(np.stack([frontend.numpy(wave) for wave in waves]), truth, atol=DECIBEL)
    np.testing.assert_allclose(run_jax(frontend, waves), truth, atol=TOLERANCE)


@pytest.mark.torch
def test_clap_with_fusion_equals_transformers(monkeypatch):
    """Clips that are longer by 1, 2, 3 and many frames, and by less than one."""
    monkeypatch.setattr(np.random, "choice", lambda third: third[len(third) // 2])
    waves = clap_waves(0.4, 1.0, 1.005, 1.01, 1.02, 1.031, 2.5)
    extractor = clap_extractor("fusion")
    truth = extractor(waves, sampling_rate=48000, return_tensors="np")
    frontend = LibrosaLogMel(48000, None, hop=480, seconds=1.0, padding="repeatpad", mel_scale="htk")
    np.testing.assert_allclose(htk_mel_filters(64, 1024, 48000, 50.0, 14000.0), extractor.mel_filters, atol=1e-12)
    features, longer = zip(*(fused_log_mel(frontend, wave) for wave in waves))
    # places between frames in float32 there, times steps of tens of decibel from one frame to the next
    np.testing.assert_allclose(np.stack(features), truth.input_features, atol=TOLERANCE)
    assert list(longer) == truth.is_longer[:, 0].tolist() == [False] * 3 + [True] * 4


@pytest.mark.torch
@pytest.mark.parametrize("length", [201, 400, 16000, 16039, 16159])
def test_whisper_of_a_clip_alone_equals_openai_definition(length):
    """`log_mel_spectrogram(audio)` without padding, as LTU-AS calls it, then `pad_or_trim` of the mel."""
    torch = pytest.importorskip("torch")
    wave = 0.1 * np.random.default_rng(length).normal(size=length).astype(np.float32)
    stft = torch.stft(torch.from_numpy(wave), 400, 160, window=torch.hann_window(400), return_complex=True)
    mel = torch.from_numpy(slaney_mel_filters(80, 400, 16000).astype(np.float32)).T @ stft[..., :-1].abs() ** 2
    truth = torch.clamp(mel, min=1e-10).log10()
    truth = ((torch.maximum(truth, truth.max() - 8.0) + 4.0) / 4.0).numpy().T
    frontend = WhisperLogMel(frames=90, padding="mel")
    truth = np.pad(truth, ((0, max(0, 90 - len(truth))), (0, 0)))[:90]
    np.testing.assert_allclose(frontend.numpy(wave), truth, atol=1e-4)  # torch works in float32
    np.testing.assert_allclose(run_jax(frontend, [wave], extra=500)[0], truth, atol=1e-4)


@pytest.mark.golden
def test_every_recorded_filterbank_is_compared(golden_ltu):
    info = json.loads((golden_ltu / "fbank/fbank_official.json").read_text())["info"]
    assert set(info) == set(CLIPS)
