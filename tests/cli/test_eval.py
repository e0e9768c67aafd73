"""`alm eval`: what it writes, that it goes on where it was stopped, and what it says of mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import alm_jax
from alm_jax.audio.io import write_audio
from alm_jax.cli.main import main
from alm_jax.data.scenes import SceneConfig
from alm_jax.eval import compose
from alm_jax.eval.protocols import scenes
from alm_jax.infer.loaded import LoadedModel

SCENES = ["--benchmark", "scenes", "--option", "scenes=2", "--option", "per_kind=2", "--max-new-tokens", "3"]


@pytest.fixture(scope="module")
def model(trained):
    return alm_jax.load(trained)


@pytest.fixture(autouse=True)
def loaded(model, monkeypatch, tmp_path_factory):
    """Commands take the model that is there; scenes are short, and words stand for their meaning."""
    monkeypatch.setattr("alm_jax.api.load", lambda *args, **kwargs: model)
    monkeypatch.setattr("alm_jax.eval.run.text_encoder", lambda name, model: _letters)
    short = scenes.Scenes(2, scene=SceneConfig(seconds=2.0, event_seconds=0.8, sounds=(1, 2)), kinds=scenes.KINDS)
    monkeypatch.setattr("alm_jax.cli.eval._own_scenes", lambda benchmark, folder: _with(benchmark, short))
    monkeypatch.setenv("ALM_CACHE", str(tmp_path_factory.getbasetemp() / "eval-cache"))


def _with(benchmark, made):
    from dataclasses import replace

    return replace(benchmark, task=replace(benchmark.task, scenes=made))


def _letters(texts):
    counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A manifest of six clips of three labels, one of which is no sound."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["file,label,split"]
    for i in range(6):
        write_audio(folder / f"{i}.wav", np.random.default_rng(i).normal(size=4000) / 4, 16000)
        lines.append(f"{i}.wav,{('dog', 'cat', 'rain')[i % 3]},{('test', 'train')[i == 5]}")
    (folder / "bad.wav").write_bytes(b"RIFF, but no more")
    (folder / "clips.csv").write_text("\n".join([*lines, "bad.wav,dog,test"]))
    return folder / "clips.csv"


def run(*args) -> int:
    return main(["eval", *map(str, args)])


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_scenes_of_a_run(trained, tmp_path, capsys):
    assert run(trained, *SCENES, "--out", tmp_path / "a", "--corrupt", "noise:10dB") == 0
    told = capsys.readouterr().out
    assert "scenes (noise:10dB)" in told and told.endswith(f"{tmp_path / 'a' / 'report.html'}\n")
    found = json.loads((tmp_path / "a" / "scenes" / "metrics.json").read_text())
    assert 0 <= found["metrics"]["score"] <= 1 and found["rows"] > 4 and found["failed"] == 0
    assert {"events", "count", "presence"} <= set(found["per_class"]["score"]) <= set(scenes.KINDS)
    worse = json.loads((tmp_path / "a" / "scenes-noise10dB" / "metrics.json").read_text())
    assert worse["corrupt"] == "noise:10dB" and worse["rows"] == found["rows"]
    report = (tmp_path / "a" / "report.html").read_text()
    assert "data:image/png;base64," in report and 'src="http' not in report and "scenes (noise:10dB)" in report
    assert set(json.loads((tmp_path / "a" / "summary.json").read_text())) == {"scenes", "scenes-noise10dB"}


def test_a_run_that_is_killed_ends_with_the_same_files(trained, model, clips, tmp_path, monkeypatch):
    args = ["--benchmark", "esc50", "--data", clips, "--how", "choices", "--batch-size", "2"]
    assert run(trained, *args, "--out", tmp_path / "whole") == 0
    likelihoods, calls = LoadedModel.likelihoods, []

    def stopped(self, *given, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return likelihoods(self, *given, **options)

    monkeypatch.setattr(LoadedModel, "likelihoods", stopped)
    assert run(trained, *args, "--out", tmp_path / "parts") == 130
    predictions = tmp_path / "parts" / "esc50" / "predictions.jsonl"
    assert len(predictions.read_text().splitlines()) == 2
    with predictions.open("a") as torn:
        torn.write('{"instruction": "Clo')
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for half in (f"esc50/.scores.jsonl.{dead.pid}.partial", f".report.html.{dead.pid}.partial"):
        (tmp_path / "parts" / half).write_text("{")
    assert run(trained, *args, "--out", tmp_path / "parts") == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    before = len(calls)
    assert run(trained, *args, "--out", tmp_path / "parts") == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(calls) == before  # nothing but the bad clip is tried again, and that cannot be heard


STOPS = (  # before the questions, the answers, the scores, all metrics and the report are written
    ("alm_jax.eval.run.read_rows", 1),
    ("alm_jax.infer.batch._agree", 1),
    ("alm_jax.eval.run.write_text", 1),
    ("alm_jax.eval.run.write_text", 2),
    ("alm_jax.eval.report.write_report", 1),
)


def test_a_run_that_is_stopped_again_and_again(trained, clips, tmp_path, monkeypatch):
    args = ["--benchmark", "esc50", "--data", clips, "--how", "choices", "--limit", "3"]
    assert run(trained, *args, "--out", tmp_path / "whole") == 0
    for place, at in STOPS:
        module, name = place.rsplit(".", 1)
        function, calls = getattr(import_module(module), name), []

        def stopped(*given, function=function, calls=calls, at=at, **options):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*given, **options)

        monkeypatch.setattr(place, stopped)
        assert run(trained, *args, "--out", tmp_path / "parts") == 130
        monkeypatch.setattr(place, function)
    assert run(trained, *args, "--out", tmp_path / "parts") == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_composed_clips_of_a_stopped_run(trained, clips, tmp_path, monkeypatch):
    """A clip that a protocol composes is there whole or not at all."""
    good = clips.with_name("good.csv")
    good.write_text("\n".join(line for line in clips.read_text().splitlines() if "bad" not in line))
    args = ["--benchmark", "esc50_order", "--data", good, "--option", "pairs=3", "--how", "choices"]
    assert run(trained, *args, "--out", tmp_path / "whole") == 0
    write, calls = compose.write_clip, []

    def stopped(path, samples):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, samples)

    monkeypatch.setattr("alm_jax.eval.protocols.composed.write_clip", stopped)
    assert run(trained, *args, "--out", tmp_path / "parts") == 130
    assert run(trained, *args, "--out", tmp_path / "parts") == 0
    whole = files(tmp_path / "whole")
    assert files(tmp_path / "parts") == whole and sum(name.endswith(".flac") for name in whole) == 3


def test_classes_by_meaning(trained, clips, tmp_path):
    out = tmp_path / "out"
    args = ["--benchmark", "esc50", "--data", clips, "--max-new-tokens", "4", "--split", "test", "--out", out]
    assert run(trained, *args) == 0
    found = json.loads((out / "esc50" / "metrics.json").read_text())
    assert found["rows"] == 6 and found["failed"] == 1
    assert found["prompt"] == "Close-ended question: Write an audio caption describing the sound."
    assert found["confusion"]["classes"] == ["cat", "dog", "rain"]
    assert np.sum(found["confusion"]["counts"]) == 5  # the clip that is no sound counts as wrong, as no class
    scores = [json.loads(line) for line in (out / "esc50" / "scores.jsonl").open()]
    assert found["metrics"]["accuracy"] == pytest.approx(np.mean([score["right"] for score in scores]))
    assert run(trained, *args, "--prompt", "mats") == 2  # other questions need another folder


def test_all_runs_what_is_there(trained, clips, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"{path.resolve()},{i}" for i, path in enumerate(sorted(clips.parent.glob("[0-2].wav")))]
    (data / "gtzan.csv").write_text("\n".join(["file,label", *rows]))
    (data / "avqa.csv").write_text(clips.read_text())
    out = tmp_path / "out"
    small = ["--option", "scenes=2", "--max-new-tokens", "2", "--limit", "2"]
    assert run(trained, "--benchmark", "all", "--data", data, "--out", out, *small) == 1
    told, err = capsys.readouterr()
    assert "alm: note: avqa: " in err and "1 of 3 benchmarks failed: avqa" in err  # its clips are not there
    assert set(json.loads((out / "summary.json").read_text())) == {"scenes", "gtzan"}
    assert "gtzan" in told and (out / "report.html").is_file()


def test_the_list(capsys):
    assert run("--list") == 0
    told = capsys.readouterr().out
    assert "esc50_12way_5shot" in told and "ways=12" in told and "ltu, apt, mats" in told


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "give MODEL and --benchmark NAME"),
        (["--benchmark", "esc51"], 2, "no benchmark 'esc51': did you mean 'esc50'"),
        (["--benchmark", "esc50"], 2, "esc50 needs --data DIR with labels"),
        (["--benchmark", "all"], 2, "--benchmark all runs what lies below --data DIR"),
        (["--benchmark", "scenes", "--trials", "0"], 2, "--trials 0: expected 1 or more"),
        (["--benchmark", "scenes", "--corrupt", "hum:3"], 2, "--corrupt hum:3: expected noise:10dB"),
        (["--benchmark", "scenes", "--option", "scenes"], 2, "--option takes name=number"),
        (["--benchmark", "scenes", "--option", "scenes=x"], 2, "--option scenes=x: expected a whole number"),
        (["--benchmark", "scenes", "--option", "ways=2"], 2, "scenes: no option ways; expected per_kind, scenes"),
        (["--benchmark", "scenes", "--how", "choices"], 2, "scenes gets answers by generate, not by choices"),
        (["--benchmark", "scenes", "--greedy", "--trials", "2"], 2, "leave --trials out"),
        (["--benchmark", "scenes", "--judge", "http://x"], 2, "--judge URL and --judge-model NAME go together"),
        (["--benchmark", "esc50", "--data", "nowhere"], 2, "--data nowhere: no such file or folder"),
        (["--benchmark", "air_bench_chat", "--data", "shipped"], 2, "rated by a language model: name it with --judge"),
    ],
)
def test_mistakes(trained, tmp_path, args, code, message, capsys):
    assert run(trained, *args, "--out", tmp_path / "out") == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("alm: error: ") and err.count("\n") == 1 and message in err


def test_a_checkpoint_needs_a_place(capsys):
    assert run("some/model", "--benchmark", "scenes") == 2
    assert "some/model is no run, whose folder would keep what is found: give --out DIR" in capsys.readouterr().err
