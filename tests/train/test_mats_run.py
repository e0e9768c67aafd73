"""MATS in runs: trained on texts, resumed to the bit, and on sound."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import alm_jax
from alm_jax.cli.main import main
from alm_jax.core import tree
from alm_jax.core.config import apply_overrides, load_config_file
from alm_jax.core.errors import ConfigError
from alm_jax.infer.memory import identity
from alm_jax.models.aligners.mapper import Mapper, MapperConfig
from alm_jax.models.features import Features
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.curriculum import train
from alm_jax.train.metrics import read_metrics
from tests.train.runs import exact


def short(**overrides):
    """The second stage of `mats/tiny`, which has LoRA, on a few scenes."""
    experiment = load_config_file("mats/tiny").get_config()
    settings = {"loop.tensorboard": False, "loop.checkpoint_every": 2}
    settings |= {"model.decoder.depth": 1, "model.aligner.depth": 1, "model.encoder.clap.text.depth": 1}
    stage = {"steps": 4, "validation": None, "data.sources.0.n": 12, "optim.warmup_steps": 1}
    stage |= {"data.sources.0.scene.seconds": 2.0, "data.sources.0.scene.event_seconds": 1.0}
    settings |= {f"stages.text.{name}": value for name, value in stage.items()}
    return apply_overrides(replace(experiment, stages=experiment.stages[1:]), settings | overrides)


@pytest.fixture(scope="module")
def done(caches, tmp_path_factory):
    """(folder, metrics) of a run without interruption."""
    out = tmp_path_factory.mktemp("mats") / "run"
    train(short(), out, progress=False)
    return out, exact(read_metrics(out / "metrics.jsonl"))


@pytest.mark.slow  # of the mechanism: test_resume.py
def test_a_run_that_was_stopped_goes_on_to_the_bit(done, caches, tmp_path, monkeypatch):
    """Noise and dropout are drawn by the step."""
    from alm_jax.train.interrupts import Interrupts

    monkeypatch.setattr(Interrupts, "requested", lambda self, step=0: step == 3)
    train(short(), tmp_path / "run", progress=False)
    assert RunFolder.open(tmp_path / "run").stage(0, "text").steps() == [2, 3]
    monkeypatch.undo()
    train(short(), tmp_path / "run", resume=True, progress=False)
    assert exact(read_metrics(tmp_path / "run" / "metrics.jsonl")) == done[1]
    whole, resumed = (RunFolder.open(path).stage(0, "text").weights(4) for path in (done[0], tmp_path / "run"))
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)


def test_cached_texts_are_those_read_in_every_step(done, caches, tmp_path):
    train(short(**{"stages.text.features": "live", "stages.text.steps": 2}), tmp_path / "run", progress=False)
    live = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # Cached features are float16.
    np.testing.assert_allclose([r["loss"] for r in live], [r["loss"] for r in done[1][:2]], rtol=2e-3)


def test_the_same_rows_train_on_sound(caches, tmp_path):
    """MATS-Audio: no noise, and the audio tower hears the scenes."""
    sound = {"stages.text.hears": "audio", "model.aligner.noise_variance": 0.0, "stages.text.steps": 1}
    train(short(**sound), tmp_path / "run", progress=False)
    assert np.isfinite(read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"])


def test_a_run_is_asked_about_sound_and_reads_texts_also_when_converted(done, tmp_path):
    assert main(["convert", str(done[0]), str(tmp_path / "out")]) == 0
    run, converted = alm_jax.load(done[0]), alm_jax.load(tmp_path / "out")
    texts, clip = ["A dog barks.", "Rain!"], np.sin(np.arange(44100.0)).astype(np.float32)
    np.testing.assert_array_equal(run.embed_text(texts), converted.embed_text(texts))
    np.testing.assert_array_equal(run.embed_audio([clip]), converted.embed_audio([clip]))
    assert identity(run) == identity(converted)


def test_noise_is_added_in_training_alone():
    config = MapperConfig(dim=16, out_dim=8, clip_tokens=2, tokens=2, width=16, depth=1)
    make = lambda key: Mapper(config, key)
    like = tree.abstract(make)
    mapper = tree.unflatten(like, {p: leaf for p, leaf in tree.flatten(make(jax.random.key(0))).items()})
    features = Features(jax.random.normal(jax.random.key(1), (1, 3, 1, 16)))
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in (0, 1)]
    quiet, first, again, second = (
        np.asarray(mapper(features, None, key)[0]) for key in (None, keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - quiet).max() > 1e-6 and np.abs(first - second).max() > 1e-6


def test_stages_that_hear_text_need_a_reader():
    with pytest.raises(ConfigError, match="hears text, and encoder_tokenizer is None"):
        replace(short(), encoder_tokenizer=None)
    with pytest.raises(ConfigError, match="hears text, and its encoder reads none: give a clap_encoder with towers"):
        short(**{"model.encoder.towers": "audio"})


def test_a_mapper_of_another_width_than_the_common_space_is_refused():
    """The towers' own widths differ (the audio tower's is 16, the text tower's 64): projections take them there."""
    assert short().model.encoder.clap.audio.dim != short().model.encoder.clap.text.dim
    with pytest.raises(ConfigError, match=r"aligner\.dim 64 differs from encoder\.dim 32"):
        short(**{"model.encoder.clap.dim": 32})
