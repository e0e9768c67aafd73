"""`alm scenes`: what it writes, and that it is the library's own composer that writes it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import main
from alm_jax.data.manifest import read_manifest, shipped_sounds, split_clips
from alm_jax.data.scenes import SceneConfig, compose, read_scenes


def test_scenes_from_the_shipped_clips(tmp_path, capsys):
    args = ["--num", "2", "--seed", "3", "--scene.seconds", "4", "--scene.sounds", "1", "2"]
    assert main(["scenes", "shipped", "--out", str(tmp_path), *args]) == 0
    out, err = capsys.readouterr()
    clips = read_manifest(shipped_sounds())
    assert out == f"2 scenes from {len(clips)} clips; questions and answers in {tmp_path / 'rows.json'}\n"
    assert err == ""  # no bar where there is no terminal
    scenes = read_scenes(tmp_path / "scenes.jsonl")
    config = SceneConfig(seconds=4.0, sounds=(1, 2))
    assert [scene for _, scene in scenes] == [compose(clips, config, scene.seed) for _, scene in scenes]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["audio_id"] for row in rows} == {name for name, _ in scenes}
    samples, rate = soundfile.read(tmp_path / scenes[0][0])
    assert (len(samples), rate) == (64000, 16000) and np.abs(samples).max() > 0.01

    before = (tmp_path / "scenes.jsonl").read_text()
    args[1] = "3"
    assert main(["scenes", "shipped", "--out", str(tmp_path), *args]) == 0
    assert (tmp_path / "scenes.jsonl").read_text().startswith(before)
    assert main(["scenes", "shipped", "--out", str(tmp_path), "--num", "2"]) == 1
    assert "holds scenes of another seed, config or set of clips" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_a_folder_of_clips_and_its_split(tmp_path, split, capsys):
    rng = np.random.default_rng(0)
    for label in ("bark", "bell"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for n in range(3):
            soundfile.write(tmp_path / "clips" / label / f"{n}.wav", rng.uniform(-0.5, 0.5, 8000), 16000)
    out = tmp_path / "out"
    assert main(["scenes", str(tmp_path / "clips"), "--out", str(out), "--num", "4", "--split", split]) == 0
    train, unseen = split_clips(read_manifest(tmp_path / "clips"))
    wanted = {str(clip.path) for clip in (train if split == "train" else unseen)}
    used = {event.clip for _, scene in read_scenes(out / "scenes.jsonl") for event in scene.events}
    assert used and all(any(path.endswith(name) for path in wanted) for name in used)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nowhere", "--num", "2"], 1, "nowhere: no such file or folder"),
        (["shipped", "--num", "0"], 2, "number of scenes is 0; expected at least 1"),
        (["shipped", "--num", "1", "--workers", "0"], 2, "workers is 0; expected at least 1"),
        (["shipped", "--num", "1", "--seed", "-1"], 2, "seed is -1; expected at least 0"),
        (["shipped", "--num", "two"], 2, "error parsing --num: invalid literal for int()"),
        (["shipped"], 2, "missing from alm scenes: --num N number of scenes (required)"),
        (
            ["shipped", "--num", "2", "--scene.sounds", "3", "1"],
            2,
            "SceneConfig.sounds is (3, 1); expected (low, high)",
        ),
        (["shipped", "--num", "2", "--scene.background", "rainn"], 2, "SceneConfig.background holds rainn"),
    ],
)
def test_mistakes(tmp_path, capsys, args, code, message):
    assert main(["scenes", *args, "--out", str(tmp_path / "out")]) == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_command_leaves_no_process_and_goes_on(number, code, tmp_path):
    command = [sys.executable, "-m", "alm_jax", "scenes", "shipped", "--out", str(tmp_path), "--num"]
    run = subprocess.Popen([*command, "100000", "--workers", "2"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 180
        while not list(tmp_path.glob("scenes/*.flac")):
            assert time.monotonic() < deadline, "no scene is written"
            time.sleep(0.1)
        run.send_signal(number)
        _, err = run.communicate(timeout=180)  # ends when the last process that holds stderr does
    finally:
        run.kill()
    assert run.returncode == code
    if number == signal.SIGINT:
        assert err == "stopped; the same command goes on from here\n"
    assert main(["scenes", "shipped", "--out", str(tmp_path), "--num", "2"]) == 0
