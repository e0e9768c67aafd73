"""Samples in the place of frames: what the pipeline delivers of them, and that frames made of them are the host's."""

import json

import numpy as np
import pytest
import soundfile

from alm_jax.audio.frontend import KaldiFbank, LibrosaLogMel, WhisperLogMel
from alm_jax.core.errors import ConfigError
from alm_jax.data.plan import Source
from alm_jax.data.waveforms import Waveforms
from tests.data.test_pipeline import FRONTEND, pipeline, shift


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """Rows of one clip, two, none and a broken one; of clips shorter and longer than a window."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for name, size, rate in (("short", 900, 16000), ("long", 9000, 16000), ("resampled", 20000, 44100)):
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.5, 0.5, size), rate)
    (folder / "broken.wav").write_bytes(b"RIFF....")
    clips = ["short.wav", ["long.wav", "short.wav"], "", "broken.wav", "resampled.wav", "long.wav"]
    rows = [{"instruction": f"Q{i}", "audio_id": clip, "output": "A"} for i, clip in enumerate(clips)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def loaded(rows_file, audio, **options):
    spec = {"sources": (Source(str(rows_file)),), "batch_size": 6, "shuffle": False, "max_bad_share": 1.0}
    return pipeline(rows_file, audio=audio, spec=spec, **options).load(0)


@pytest.mark.parametrize(
    "frontend",
    [
        FRONTEND,
        WhisperLogMel(frames=20),
        LibrosaLogMel(16000, None, n_fft=512, hop=160, high_freq=8000.0, seconds=0.3, padding="repeatpad"),
    ],
    ids=lambda frontend: type(frontend).__name__,
)
def test_their_frames_are_the_hosts(rows_file, frontend):
    host, given = loaded(rows_file, frontend), loaded(rows_file, Waveforms(frontend))
    batch = given.batch
    n = batch.audio.shape[2]
    assert batch.audio.shape == (6, 2, n) and batch.audio.dtype == np.float32 and host.batch.audio_samples is None
    assert n == round(frontend.max_seconds * 16000)
    expected = np.minimum(n, [[900, 0], [9000, 900], [0, 0], [0, 0], [np.ceil(20000 * 160 / 441), 0], [9000, 0]])
    np.testing.assert_array_equal(batch.audio_samples, expected)
    assert batch.audio_samples.dtype == np.int32
    assert given.bad == host.bad and len(given.bad) == 1 and not batch.audio[batch.audio_samples == 0].any()
    np.testing.assert_array_equal(batch.audio_clip, host.batch.audio_clip)
    parts = [loaded(rows_file, Waveforms(frontend), process_index=p, process_count=2).batch for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([part.audio_samples for part in parts]), batch.audio_samples)
    frames = frontend.jax(batch.audio.reshape(-1, n), batch.audio_samples.ravel()).reshape(host.batch.audio.shape)
    there = batch.audio_samples > 0
    # as tests/audio compares the two forms
    tolerance = 5e-3 * (10 / np.log(10) if isinstance(frontend, LibrosaLogMel) else 1)
    np.testing.assert_allclose(np.asarray(frames)[there], host.batch.audio[there], atol=tolerance)


@pytest.mark.parametrize("frontend", [KaldiFbank(peak=0.5), WhisperLogMel(padding="mel"), LibrosaLogMel(seconds=None)])
def test_front_ends_that_look_at_whole_clips_are_refused(frontend):
    with pytest.raises(ConfigError, match=rf"{type(frontend).__name__} with these settings looks at the whole of it: "):
        Waveforms(frontend)


def test_what_takes_frames_is_refused(rows_file):
    with pytest.raises(ConfigError, match="samples, features and texts cannot be augmented"):
        pipeline(rows_file, audio=Waveforms(FRONTEND), augment=shift)
    with pytest.raises(ConfigError, match=r"Waveforms hears one window of a clip: .*front_end='host'"):
        pipeline(rows_file, audio=Waveforms(FRONTEND), spec={"segments": 2})
