"""Frames that a step computes: those of the host, and what is refused; `test_train_run` has a run of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from alm_jax.audio.frontend import KaldiFbank, WhisperLogMel
from alm_jax.core.errors import ConfigError
from alm_jax.train.config import Stage
from alm_jax.train.step import with_frames
from tests.train.runs import short
from tests.train.toy import toy_batch

FRONTEND = KaldiFbank(num_mels=8, frames=20)
DEVICE = {"stages.read.front_end": "device"}


def test_each_slot_has_the_frames_of_its_samples():
    rng = np.random.default_rng(0)
    n = 19 * 160 + 400
    samples = np.array([[n, 0], [700, n], [0, 0]], np.int32)
    waves = np.where(np.arange(n) < samples[..., None], rng.uniform(-0.5, 0.5, (3, 2, n)), 0.0).astype(np.float32)
    batch = replace(toy_batch(rows=3), audio=waves, audio_samples=samples)
    like = SimpleNamespace(config=SimpleNamespace(frontend=FRONTEND))
    found = with_frames(batch, like)
    assert found.audio.shape == (3, 2, 20, 8) and found.audio_samples is None
    for wave, count, frames in zip(waves.reshape(6, n), samples.ravel(), np.asarray(found.audio).reshape(6, 20, 8)):
        expected = FRONTEND.numpy(wave[:count]) if count else np.zeros((20, 8))
        np.testing.assert_allclose(frames, expected, atol=5e-3)  # as tests/audio compares the two forms
    assert with_frames(found, like) is found


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stages.read.features": "cached"}, "of one window a clip, and not with features='cached': leave one of"),
        ({"stages.read.data.segments": 2}, "and not with data.segments above 1"),
        ({"stages.read.validation.data.segments": 2}, "and not with data.segments above 1"),
        ({"stages.read.hears": "text"}, "and not with hears='text'"),
        (
            {"model.frontend.peak": 0.5},
            "stage 'read': front_end='device' .* looks at the whole of it: leave front_end='h",
        ),
    ],
)
def test_what_the_device_cannot_compute(changes, match):
    with pytest.raises(ConfigError, match=match):
        short(1, **DEVICE | changes)


def test_a_front_end_of_a_stages_own_model():
    base = short(1, **DEVICE)
    stage = replace(base.stages[0], model={"frontend": WhisperLogMel(frames=192, padding="mel")})
    assert isinstance(stage, Stage)
    with pytest.raises(ConfigError, match="WhisperLogMel with these settings looks at the whole"):
        replace(base, stages=(stage,))
