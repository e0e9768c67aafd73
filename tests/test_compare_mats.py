"""The comparison of MATS's ways over the gap: what is trained, and what is made of results."""

import importlib
import json
from dataclasses import replace

import pytest

from alm_jax.data.composed import Scenes
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.source import Tasks


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("compare_mats")


def scenes_in(experiment):
    for stage in experiment.stages:
        for data in filter(None, (stage.data, stage.validation and stage.validation.data)):
            for source in data.sources:
                yield source.clips if isinstance(source, Tasks) else source


def test_everything_is_trained_on_the_given_sounds_and_one_clap(tool, tmp_path):
    planned = tool.experiments(tmp_path, "mine")
    assert list(planned) == ["clap", "mats_smollm2", "mats_smollm2_no_noise", "mats_smollm2_audio"]
    for experiment in planned.values():
        found = list(scenes_in(experiment))
        assert len(found) >= 2 and all(isinstance(scenes, Scenes) and scenes.clips == "mine" for scenes in found)
    for name in list(planned)[1:]:
        assert planned[name].weights[0].source == str(tmp_path / "clap")
    assert {way.run for way in tool.WAYS.values()} == set(planned) - {"clap"}
    assert tool.WAYS["memory only"].santa["share"] == 1.0
    assert tool.WAYS["noise only"].santa is None and tool.WAYS["Santa"].santa == {}


def test_questions_are_of_scenes_that_training_does_not_hold(tool):
    seen = Scenes(3, 0, kinds=("events", "presence"))
    seen = replace(seen, scene=replace(seen.scene, seconds=2.0, event_seconds=1.0))
    asked = tool.questions(seen, 6)
    heard = {name: [r.meta["labels"] for r in rows.rows if r.task == "events"] for name, rows in asked.scenes.items()}
    trained = [row.meta["labels"] for row in asked.trained if row.task == "events"]
    assert heard["mixtures"][:3] != trained and len(heard["mixtures"]) == 6
    assert len(asked.labels) == 30 and {row.output for row in asked.recordings} <= set(asked.labels)
    chosen = tool.chosen_rows(asked.scenes["mixtures"], asked.kinds, 6)
    assert [asked.scenes["mixtures"][i].task for i in chosen] == ["events"] * 3 + ["presence"] * 3


class Listener:
    """Names the label that a file's name holds, as the tool's helpers ask for it."""

    def embed_audio(self, clips):
        import numpy as np

        return np.eye(3, dtype=np.float32)[[int(clip[-1]) for clip in clips]]

    def embed_text(self, texts):
        import numpy as np

        return np.eye(3, dtype=np.float32)[["a bee" in t or 2 * ("a cat" in t) for t in texts]]


def test_table_and_plot(tool, tmp_path):
    measure = {
        "mixtures": tool.mean_of([0.0, 1.0]),
        "unseen": tool.mean_of([0.5, 0.5]),
        "recordings": {"right": 1, "of": 4},
    }
    guesses = {"chance": {"recordings": {"share": 0.1}}}
    planned = dict.fromkeys(["clap", *(way.run for way in tool.WAYS.values())])
    for name in planned:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(
            json.dumps({"stage": "s", "step": 1, "step_time_s": 90.0}) + "\n"
        )
    results = {"ways": {name: {"measures": measure} for name in tool.WAYS}, "guesses": guesses}
    table = tool.report(tmp_path, results, planned)
    assert "| Santa | 0.50 (0.00-1.00) | 0.50 | 0.25 (0.05-0.70) | 1.5 |" in table  # Wilson's interval of 1 of 4
    assert "| chance |  |  | 0.10 |  |" in table and "of the CLAP before it: 1.5." in table
    assert (tmp_path / "compare.png").stat().st_size > 5000
    assert json.loads((tmp_path / "results.json").read_text())["minutes"]["clap"] == 1.5


def test_errors_are_one_line(tool, tmp_path, capsys):
    assert tool.main(["--out", str(tmp_path / "out"), "--sounds", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        tool.main(["--out", str(tmp_path), "--questions", "2"])


def test_what_listening_is_compared_with(tool):
    row = lambda name: AudioRow(tool.QUESTION, "", name, output=f"Labels: {('ape', 'bee', 'cat')[int(name[-1])]}")
    asked = tool.Asked({}, [row("x0"), row("x1")], ("Labels: ape", "Labels: bee", "Labels: cat"), [], ())
    found = tool.guesses(asked, Listener(), 6)
    assert found["chance"] == {"recordings": {"share": 1 / 3}} and found["CLAP alone"]["recordings"]["of"] == 2
