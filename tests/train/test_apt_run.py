"""APT's stages in one run: aligned without a language model, then answering with one."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

import alm_jax
from alm_jax.cli.main import main
from alm_jax.core.config import apply_overrides, load_config_file
from alm_jax.core.errors import ConfigError
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.curriculum import train
from alm_jax.train.metrics import read_metrics


def short():
    """The first two stages of `apt/tiny` on a few short scenes; the first updates have a rate of 0."""
    settings = {"loop.tensorboard": False, "model.encoder.frames": 192, "model.frontend.frames": 192}
    settings |= {"model.encoder.depth": 1, "model.aligner.depth": 1, "model.decoder.depth": 1}
    for stage, steps in (("align", 4), ("single", 2)):
        scenes = {"n": 16, "scene.seconds": 2.0, "scene.event_seconds": 1.0}
        settings |= {f"stages.{stage}.data.sources.0.clips.{name}": value for name, value in scenes.items()}
        settings |= {f"stages.{stage}.steps": steps, f"stages.{stage}.validation": None}
        settings |= {f"stages.{stage}.optim.warmup_steps": 1, f"stages.{stage}.optim.epoch_steps": None}
    experiment = load_config_file("apt/tiny").get_config()
    stages = (*experiment.stages[:2],)
    return apply_overrides(replace(experiment, stages=stages), settings)


@pytest.fixture(scope="module")
def done(caches, tmp_path_factory):
    out = tmp_path_factory.mktemp("apt") / "run"
    train(short(), out, progress=False)
    return out


def test_the_parts_of_the_alignment_loss_are_followed(done):
    rows = [row for row in read_metrics(done / "metrics.jsonl") if row["stage"] == "align"]
    parts = ("contrast_loss", "match_loss", "text_loss")
    for row in rows:
        np.testing.assert_allclose(sum(row[name] for name in parts), row["loss"], rtol=1e-5)  # float32
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not set(parts) & set(read_metrics(done / "metrics.jsonl")[-1])


def test_the_aligner_is_handed_over_without_its_heads(done):
    run = RunFolder.open(done)
    aligned, answering = run.stage(0, "align"), run.stage(1, "single")
    names = set(aligned.weight_names(4))
    assert all(name.startswith("aligner.") for name in names) and "aligner.proj.kernel" not in names
    assert any(name.startswith("aligner.heads.") for name in names)
    before, after = aligned.weights(4), answering.weights(2)
    assert {n for n in names if n not in after} == {n for n in names if n.startswith("aligner.heads.")}
    assert {"aligner.proj.kernel", "indicators", "encoder.class_token"} <= after.keys()
    assert "encoder.pos_embed" not in after  # a constant
    # One update at a rate of 0 and one at 3e-3: Adam's first step moves a weight by the rate at most.
    for name in names & after.keys():
        assert np.abs(after[name] - before[name]).max() <= 3.1e-3, name


def test_a_run_holds_the_tokenizer_of_its_aligner(done):
    assert (done / "aligner_tokenizer" / "tokenizer.json").is_file()
    model = alm_jax.load(done)
    assert model.aligner_tokenizer.vocab_size == model.config.aligner.vocab_size - 1  # [DEC] is the aligner's own


def test_a_run_that_ends_with_its_alignment_cannot_be_asked(done, tmp_path, capsys):
    """It has no decoder yet; one line says so, before anything is made of the clip."""
    run = shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(run / "stages" / "1_single")
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    assert main(["ask", str(run), "--audio", str(tmp_path / "a.wav"), "What is heard?"]) == 2
    out, err = capsys.readouterr()
    said = "this model is an aligner without a decoder, and cannot answer: train the stage after it"
    assert out == "" and said in err.splitlines()[-1]


def test_a_tokenizer_has_to_fit_the_aligner(tmp_path, caches):
    with pytest.raises(ConfigError, match=r"the aligner_tokenizer has 512 ids, model\.aligner\.vocab_size is 500"):
        train(apply_overrides(short(), {"model.aligner.vocab_size": 500}), tmp_path / "run", progress=False)
