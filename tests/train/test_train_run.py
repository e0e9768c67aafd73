"""Whole runs in this process: what a folder holds, what is handed over, and what stops a run."""

import json
import logging
import subprocess
from dataclasses import replace

import jax
import numpy as np
import pytest

from alm_jax.audio.io import load_audio
from alm_jax.core import tree
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import AlmError, CheckpointError, ConfigError, DataError, UsageError
from alm_jax.core.mesh import make_mesh
from alm_jax.data.composed import Scenes
from alm_jax.data.pipeline import make_pipeline
from alm_jax.data.plan import Source
from alm_jax.data.tokenizer import load_tokenizer
from alm_jax.models.alm import build
from alm_jax.train import features
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.config import TrainTokenizer, Weights
from alm_jax.train.curriculum import train
from alm_jax.train.features import compute_features
from alm_jax.train.metrics import Progress, read_metrics
from alm_jax.train.profile import read_steps
from alm_jax.train.run import load_run
from alm_jax.train.weights import StageModel
from tests.train.runs import exact, short


class Rows:
    """A tracker of one's own."""

    def __init__(self):
        self.rows, self.closed = [], False

    def log(self, row):
        self.rows.append(row)

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def done(caches, tmp_path_factory):
    """(experiment, folder, result, rows) of two stages, the first from cached features; the CPU calls itself a TPU v4
    when it is asked for its peak."""
    experiment = short(**{"stages.read.features": "cached", "loop.tensorboard": True})
    tracker = Rows()
    out = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alm_jax.train.loop.device_kind", lambda: "TPU v4")
        result = train(experiment, out, progress=False, trackers=[tracker], profile=(2, 3))
    assert tracker.closed
    return experiment, out, result, tracker.rows


def test_a_run_folder_holds_everything(done):
    _, out, result, rows = done
    assert not result.stopped and [(s.name, s.step) for s in result.stages] == [("read", 6), ("all", 6)]
    assert rows == read_metrics(out / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [(row["stage"], row["step"]) for row in steps] == [(s, i) for s in ("read", "all") for i in range(1, 7)]
    expected = {"stage", "step", "loss", "learning_rate", "grad_norm", "tokens_per_s", "step_time_s"}
    expected |= {"data_wait_s", "host_s", "device_wait_s", "tflops_per_s_per_device", "mfu"}
    assert all(row.keys() == expected for row in steps)
    assert [row["learning_rate"] for row in steps[:3]] == pytest.approx([0.0, 1.5e-3, 3e-3])  # warm-up of 2
    validated = [row for row in rows if "validation_loss" in row]
    assert [(row["stage"], row["step"]) for row in validated] == [(s, i) for s in ("read", "all") for i in (3, 6)]
    assert result.stages[0].validation_loss == validated[1]["validation_loss"]
    run = RunFolder.open(out)
    assert run.stage(0, "read").steps() == [4, 6]  # the best is among the last two
    assert run.stage(0, "read").finished == 6
    assert {path.name for path in (out / "tensorboard").iterdir()} == {"read", "all"}
    flat = json.loads((out / "config.json").read_text())["flat"]
    assert flat["stages.0.steps"] == 6 and flat["stages.0.data.sources.0"] == "Scenes"


def test_what_its_time_went_to(done):
    _, out, _, rows = done
    steps = [row for row in rows if "loss" in row]
    told = json.loads((out / "goodput.json").read_text())
    assert told["seconds"].keys() == {"setup", "features", "compiling", "steps", "data", "validation", "checkpoints"}
    assert 0 < told["goodput"] < 1 and told["goodput"] == pytest.approx(
        told["seconds"]["steps"] / sum(told["seconds"].values()), abs=1e-3
    )
    for row in rows:  # parts of a step, which overlap with none but its neighbours
        assert row.get("device_wait_s", 0) <= row.get("step_time_s", 0) + 1e-3
    for row in steps:  # four digits of each
        assert row["mfu"] * 275 == pytest.approx(row["tflops_per_s_per_device"], rel=1e-3)
    known = ", ".join(f"{stage.name} {stage.mfu:.1%}" for stage in done[2].stages)
    assert "time: " in (log := (out / "log.txt").read_text()) and f"; MFU of the stages: {known}\n" in log


@pytest.mark.parametrize("stage", ["read", "all"])
def test_traces_of_some_steps(done, stage):
    (trace,) = (done[1] / "profile" / stage).rglob("*.xplane.pb")
    assert b"train" in trace.read_bytes()  # the steps' name
    assert f"{done[1] / 'profile' / stage} has a trace" in (done[1] / "log.txt").read_text()


@pytest.mark.parametrize(("text", "steps"), [("10", (10, 10)), ("10-12", (10, 12))])
def test_steps_to_trace(text, steps):
    assert read_steps(text) == steps


@pytest.mark.parametrize("text", ["", "0", "3-2", "a", "1-2-3", "-1"])
def test_steps_that_make_no_sense(text):
    with pytest.raises(UsageError, match="expected a step, or the first and the last"):
        read_steps(text)


def test_it_learns(done):
    rows = [row["loss"] for row in done[3] if "loss" in row]
    assert rows[5] < rows[0] - 0.5  # six steps from random weights: the loss of a uniform guess is log 512 = 6.2


def test_weights_are_handed_over_and_the_optimiser_is_not(done):
    _, out, _, _ = done
    run = RunFolder.open(out)
    first, second = run.stage(0, "read"), run.stage(1, "all")
    trained = first.weights(6)
    carried = second.carried()
    assert carried.keys() == {path for path in trained if path.startswith("decoder.")}
    for path, leaf in carried.items():
        np.testing.assert_array_equal(leaf, trained[path], err_msg=path)
    assert all(path.startswith("encoder.") for path in first.carried_names())
    assert not set(second.carried_names()) & set(second.weight_names(6))


def test_load_run_gives_the_whole_model(done):
    experiment, out, _, _ = done
    run = load_run(out)
    assert run.experiment == experiment and (run.stage.name, run.step) == ("all", 6)
    assert run.model.encoder is not None and run.sources == ()
    weights = RunFolder.open(out).stage(1, "all").weights(6)
    assert weights.keys() < run.arrays.keys()
    np.testing.assert_array_equal(run.arrays["aligner.proj.kernel"], weights["aligner.proj.kernel"])
    best = load_run(out, "best")
    losses = {r["step"]: r["validation_loss"] for r in done[3] if r["stage"] == "all" and "validation_loss" in r}
    assert best.step == min(losses, key=losses.get)


def test_validation_loss_is_the_mean_over_all_held_out_tokens(done):
    """Recomputed from the saved weights, one row at a time, in another order and without padding rows."""
    experiment, out, result, _ = done
    run = load_run(out)
    data = experiment.stages[1].validation.data
    rows = data.sources[0].write(cache_dir())
    pipeline = make_pipeline(
        replace(data, sources=(Source(str(rows)),), batch_size=1, shuffle=False),
        template=experiment.template,
        layout=experiment.layout,
        tokenizer=load_tokenizer(out / "tokenizer"),
        audio=run.model.frontend,
        audio_tokens=run.model.audio_tokens,
    )
    model = tree.unflatten(tree.abstract(lambda key: build(run.model, key)), run.arrays)
    forward = jax.jit(lambda batch: jax.nn.log_softmax(model.logits(model.hidden(batch))))
    total = count = 0.0
    for loaded in pipeline.iterate(0, pipeline.plan.steps_per_epoch):
        batch = loaded.batch
        chosen = np.take_along_axis(np.asarray(forward(batch)), batch.targets[..., None], -1)[..., 0]
        total, count = total - (chosen * batch.loss_weight).sum(), count + batch.loss_weight.sum()
    assert result.stages[1].validation_loss == pytest.approx(total / count, rel=1e-5)  # float32 sums


def test_a_finished_run_is_not_run_again(done, capsys):
    experiment, out, _, rows = done
    result = train(experiment, out, resume=True)
    assert result.stages == () and not result.stopped
    assert read_metrics(out / "metrics.jsonl") == rows
    assert "stage all: finished before" in capsys.readouterr().err
    (out / "stages" / "1_all" / "finished.json").unlink()  # killed after the last checkpoint, before it was noted
    result = train(experiment, out, resume=True, progress=False)
    assert [(stage.name, stage.step) for stage in result.stages] == [("all", 6)] and not result.stopped
    assert RunFolder.open(out).stage(1, "all").finished == 6
    assert read_metrics(out / "metrics.jsonl") == rows


@pytest.fixture(scope="module")
def live(caches, tmp_path_factory):
    """The rows of the first stage, its encoder run in every step."""
    result = train(short(1), tmp_path_factory.mktemp("live") / "run", progress=False)
    return read_metrics(result.path / "metrics.jsonl")


def test_frames_of_the_device_are_the_hosts(live, tmp_path, caches):
    changes = {"stages.read.front_end": "device"}
    result = train(short(1, **changes), tmp_path / "run", progress=False)
    rows = read_metrics(result.path / "metrics.jsonl")
    for name in ("loss", "grad_norm", "validation_loss"):
        device, host = ([row[name] for row in run if name in row] for run in (rows, live))
        np.testing.assert_allclose(device, host, rtol=1e-4, err_msg=name)  # frames differ by rounding


def test_cached_features_are_those_of_the_encoder_and_kept(done, live, monkeypatch, tmp_path, caches):
    _, _, _, rows = done
    cached = [row["loss"] for row in rows if row["stage"] == "read" and "loss" in row]
    steps = [row for row in live if "loss" in row]
    assert not any("mfu" in row for row in steps)  # nothing is published of a CPU
    plain = [row["loss"] for row in steps]
    np.testing.assert_allclose(cached, plain, rtol=1e-4)  # features are kept in float16
    monkeypatch.setattr("alm_jax.train.features._write_parts", lambda *a: pytest.fail("computed again"))
    again = train(short(1, **{"stages.read.features": "cached"}), tmp_path / "again", progress=False)
    assert exact(read_metrics(again.path / "metrics.jsonl")) == exact([r for r in rows if r["stage"] == "read"])


def test_a_folder_that_holds_something_is_not_written_to(done, tmp_path):
    experiment, out, _, _ = done
    with pytest.raises(UsageError, match=r"is not empty: go on with --resume, or give another --out"):
        train(experiment, out)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is no run folder: it holds no config.json"):
        train(experiment, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"stages.0.steps was 6, is 7"):
        changed = replace(experiment.stages[0], steps=7)
        train(replace(experiment, stages=(changed, *experiment.stages[1:])), out, resume=True)


def test_errors_come_before_the_folder_is_made(tmp_path, caches):
    experiment = short(**{"stages.all.trainable": ("decoder.*", "typo.*")})
    with pytest.raises(ConfigError, match=r"\['typo.\*'\] fit no parameter"):
        train(experiment, tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"stage 'read': data.buckets go up to 112 positions, and the decoder reads 64"
    ):
        train(short(**{"model.decoder.positions": 64}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"pallas_tpu cannot do this call: it needs a TPU.*cross_entropy=auto takes"):
        train(short(**{"model.decoder.cross_entropy": "pallas_tpu"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_may_begin_from_another_run_and_must_drop_what_it_cannot_place(done, tmp_path, caches):
    _, out, _, _ = done
    base = short(1)
    stage = replace(base.stages[0], steps=1, validation=None, init_from=(Weights("*", str(out)),))
    with pytest.raises(ConfigError, match=r"decoder.blocks.attn.q.lora_a.* have no place in its model; name them"):
        train(replace(base, stages=(stage,)), tmp_path / "a", progress=False)
    dropped = replace(stage, drop=("*.lora_?",))
    train(replace(base, stages=(dropped,)), tmp_path / "b", progress=False)
    # The rate of the first update is 0: the weights are still those of the other run.
    mine, theirs = load_run(tmp_path / "b").arrays, load_run(out).arrays
    for path in mine:
        np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(tmp_path, caches):
    experiment = short(1, **{"stages.read.optim.learning_rate": 1e30, "stages.read.validation": None})
    with pytest.raises(AlmError, match=r"stage 'read', step \d: loss is (nan|inf); its batch holds .*rows-.*json\["):
        train(experiment, tmp_path / "run", progress=False)
    assert max(RunFolder.open(tmp_path / "run").stage(0, "read").steps(), default=0) <= 2  # none with spoilt weights
    for leaf in load_run(tmp_path / "run").arrays.values():
        assert np.isfinite(leaf).all()


def rows_with_a_missing_clip(caches, tmp_path, bad):
    scenes = short().stages[0].data.sources[0]
    made = scenes.write(cache_dir())
    rows = json.loads(made.read_text())[:8]
    for i, row in enumerate(rows):
        row["audio_id"] = "missing.wav" if i < bad else str(made.parent / row["audio_id"])
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    return Source(str(file))


@pytest.mark.parametrize("features", ["live", "cached"])
def test_bad_rows_are_named_until_there_are_too_many(tmp_path, caches, features):
    source = rows_with_a_missing_clip(caches, tmp_path, bad=2)
    base = short(1, **{"stages.read.validation": None, "stages.read.steps": 2, "stages.read.features": features})
    stage = base.stages[0]

    def experiment(share):
        data = replace(stage.data, sources=(source,), max_bad_share=share)
        return replace(base, stages=(replace(stage, data=data),))

    train(experiment(0.5), tmp_path / "run", progress=False)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "rows.json[0]" in log and "missing.wav" in log
    assert "stage read: 4 bad rows were left out of the loss" in log  # both, in both of the steps of eight rows
    with pytest.raises(DataError, match="more than max_bad_share"):
        train(experiment(0.1), tmp_path / "other", progress=False)
    assert logging.getLogger("alm_jax").handlers == []  # the run's log is let go of


def test_a_tokenizer_has_to_fit_the_decoder(tmp_path, caches):
    experiment = replace(short(1, **{"model.decoder.vocab_size": 299}), tokenizer=TrainTokenizer(300))
    with pytest.raises(ConfigError, match=r"the tokenizer has 300 ids, model.decoder.vocab_size is 299"):
        train(experiment, tmp_path / "run", progress=False)


def test_features_go_on_from_the_last_part(done, caches, monkeypatch, tmp_path):
    """A computation that was stopped between parts computes the rest alone."""
    experiment, out, _, _ = done
    run = load_run(out)
    stage = experiment.stages[0]
    model = StageModel(experiment.stage_model(stage), stage, make_mesh(experiment.mesh), experiment.stage_precision())
    encoder = {path: leaf for path, leaf in run.arrays.items() if path.startswith("encoder.")}
    source = stage.data.sources[0]
    assert isinstance(source, Scenes)
    clips = sorted((source.write(cache_dir()).parent / "scenes").glob("*.flac"))[:6]
    tokenizer = load_tokenizer(out / "tokenizer")
    hearing = features.Hearing(
        experiment.model.frontend, experiment.template, experiment.layout, tokenizer, 2, workers=0, max_bad_share=0.0
    )
    monkeypatch.setattr(features, "_PART", 1)
    progress, asked = Progress(None, show=False), []

    def stop_at_the_third():
        asked.append(1)
        return len(asked) == 3

    args = (clips, model, encoder, hearing, tmp_path, progress)
    assert compute_features(*args, should_stop=stop_at_the_third) is None
    assert len(list(tmp_path.rglob("*.parts/*.array_record"))) == 2
    asked.clear()
    store = compute_features(*args, should_stop=lambda: bool(asked.append(1)))
    assert len(asked) == 1 and len(store) == 6
    assert not list(tmp_path.rglob("*.parts/*.array_record"))
    expected = features._encoder(model)(encoder, _windows(model, clips))[0]
    for clip, values in zip(clips, expected):
        np.testing.assert_array_equal(store.of_clip(clip), values)


def _windows(model, clips):
    frontend = model.config.frontend
    waves = [load_audio(clip, sample_rate=frontend.sample_rate, max_seconds=frontend.max_seconds)[0] for clip in clips]
    return np.stack([frontend.numpy(wave) for wave in waves])[:, None], np.ones((len(clips), 1), np.float32)


def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(done, mounted, caches):
    disk = mounted("size=4m")
    experiment = short(1, **{"stages.read.features": "cached"})
    with pytest.raises(AlmError, match="the disk is full; earlier checkpoints are whole") as caught:
        train(experiment, disk / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert RunFolder.open(disk / "run").stage(0, "read").steps()
    subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
    train(experiment, disk / "run", resume=True, progress=False)
    rows = exact(read_metrics(disk / "run" / "metrics.jsonl"))
    assert rows == exact([row for row in done[3] if row["stage"] == "read"])
