"""Rows about what is held out are left out of a stage, said, and listed in the run's folder."""

import json

import pytest

from alm_jax.audio.io import write_audio
from alm_jax.core.config import apply_overrides
from alm_jax.data.rows import read_rows
from alm_jax.train.inputs import guard
from alm_jax.train.metrics import Progress
from tests.audio.test_fingerprint import RATES, cut, sound
from tests.train.runs import short


@pytest.fixture
def rows(tmp_path):
    """Rows about five sounds; two of them, one cut and under another name, stand in `held` too."""
    for seed in range(5):
        write_audio(tmp_path / f"{seed}.wav", sound(seed), RATES)
    (tmp_path / "held/dog").mkdir(parents=True)
    write_audio(tmp_path / "held/dog/a.flac", cut(sound(1), RATES)[0], RATES)
    write_audio(tmp_path / "held/dog/b.flac", sound(3), RATES)
    rows = [{"instruction": "What?", "audio_id": f"{seed}.wav", "output": str(seed)} for seed in range(5)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return read_rows(tmp_path / "rows.json")


def test_a_stage_without_what_is_held_out(rows, tmp_path, caches, capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    held = str(tmp_path / "held")
    experiment = apply_overrides(short(), {"held_out": f"('{held}',)"})
    assert experiment.held_out == (held,)
    kept = guard(experiment, "read", tmp_path, Progress(None))(rows)
    assert [row.output for row in kept.rows] == ["0", "2", "4"]
    told = capsys.readouterr().err
    assert (
        f"stage read: 2 of 5 rows are left out, about clips that are held out to test on ({held}: 2 by sound); " in told
    )
    listed = [json.loads(line) for line in (tmp_path / "leaks-read.jsonl").read_text().splitlines()]
    assert [(leak["clip"], leak["of"]) for leak in listed] == [(str(tmp_path / f"{i}.wav"), held) for i in (1, 3)]
    # Another stage hears rows of which none leaks; and nothing is held out where nothing is named or prepared beside.
    guard(experiment, "all", tmp_path, Progress(None))(kept)
    assert f"stage all: none of 3 rows is about a clip of {held}" in capsys.readouterr().err
    for nothing in (short(), apply_overrides(short(), {"held_out": "()"})):
        assert guard(nothing, "read", tmp_path / "none", Progress(None))(rows) is rows
    assert capsys.readouterr().err == "" and not (tmp_path / "none").exists()
