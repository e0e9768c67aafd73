"""The comparison of APT's variants: its runs, its questions and its table, with a model that stands in for all."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alm_jax.core.config import load_config_file
from alm_jax.core.errors import ConfigError
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.config import run_config

CONFIG = """\
from dataclasses import replace

from alm_jax.core.config import load_config_file
from alm_jax.data.tasks.source import Tasks

tiny = load_config_file("apt/tiny")
sweep = tiny.sweep


def get_config():
    config = tiny.get_config()

    def short(source):
        scene = replace(source.clips.scene, seconds=2.0, event_seconds=1.0)
        return replace(source, clips=replace(source.clips, n=24, scene=scene))

    def less(stage):
        data = replace(stage.data, sources=tuple(map(short, stage.data.sources)))
        return replace(stage, data=data, validation=None)

    return replace(config, stages=tuple(map(less, config.stages)))
"""


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("compare_apt")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "short.py"
    path.write_text(CONFIG)
    return load_config_file(path)


@pytest.fixture(scope="module")
def asked(tool, file, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tool.questions(file.get_config(), 12, lambda done, total: None)


class Knowing:
    """Stands in for a model that knows the answers to all questions; each clip's features are its own number."""

    def __init__(self, asked):
        self.numbers, self.answers = {}, {}
        rows = [row for given in asked.values() for row in given.rows]
        for clip in dict.fromkeys(clip for row in rows for clip in row.clips):
            self.numbers[clip] = float(len(self.numbers))
        for row in rows:
            self.answers[row.instruction, tuple(self.numbers[clip] for clip in row.clips)] = row.output

    def encode(self, clips):
        return [np.array(self.numbers[str(clip)]) for clip in clips]

    def answer(self, questions, features, **_):
        return [self.answers[q, tuple(float(clip) for clip in clips)] for q, clips in zip(questions, features)]

    def likelihoods(self, questions, features, choices, *, input):
        known = self.answer(questions, features)
        return [dict.fromkeys(sorted(given, key=lambda c: c != answer), 0.0) for given, answer in zip(choices, known)]


def test_runs_come_seed_by_seed(tool, file, tmp_path):
    runs = tool.plan(file, tmp_path, 2, 8)
    variants = [item["name"] for item in file.sweep()]
    assert [run.variant for run in runs] == variants * 2
    assert [run.experiment.seed for run in runs] == [0] * len(variants) + [1] * len(variants)
    assert len({run.folder for run in runs}) == len(runs)
    assert any("(shared)" in line for line in tool.overview(tool.plan(load_config_file(tool.CONFIG), tmp_path, 1, 8)))


def test_stages_are_shared_as_far_as_all_before_them_is_equal(tool, file):
    one = file.get_config()
    longer = replace(one.stages[1], steps=one.stages[1].steps + 1)
    assert tool.shared_stages(one, replace(one, name="other")) == len(one.stages)
    assert tool.shared_stages(one, replace(one, stages=(one.stages[0], longer, one.stages[2]))) == 1
    assert tool.shared_stages(one, replace(one, stages=one.stages[1:])) == 0
    assert tool.shared_stages(one, replace(one, seed=1)) == 0


def test_a_run_begins_with_the_stages_that_another_finished(tool, file, tmp_path):
    one, other = (replace(run, folder=tmp_path / name) for run, name in zip(tool.plan(file, tmp_path, 1, 8), "ab"))
    stages = one.experiment.stages
    other = replace(other, experiment=replace(one.experiment, name="other", stages=(*stages[:1], *stages[2:])))
    folder = RunFolder.create(one.folder, run_config(one.experiment))
    (one.folder / "tokenizer").mkdir()
    rows = [{"stage": stage.name, "step": 1, "loss": 1.0} for stage in stages]
    (one.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tool.adopt(other, [one, other]) == "" and not other.folder.exists()  # nothing is finished yet
    folder.stage(0, stages[0].name).path.mkdir(parents=True)
    folder.stage(0, stages[0].name).finish(stages[0].steps)
    assert tool.adopt(other, [one, other]) == f"{stages[0].name} of {one.variant}"
    adopted = RunFolder.open(other.folder)
    assert adopted.stage(0, stages[0].name).finished == stages[0].steps
    assert adopted.stage(1, stages[2].name).finished is None
    assert (other.folder / "tokenizer").is_dir() and adopted.config()["experiment"]["name"] == "other"
    assert [json.loads(line) for line in (other.folder / "metrics.jsonl").read_text().splitlines()] == rows[:1]
    assert tool.adopt(other, [one, other]) == ""  # it has begun


def test_questions_are_about_other_scenes_than_training(tool, file, asked):
    assert tuple(asked) == tool.MEASURES
    trained = {clip for row in tool.rows_of(tool.source_of(file.get_config(), "tagging")) for clip in row.clips}
    for name, given in asked.items():
        assert given.rows and not trained & {clip for row in given.rows for clip in row.clips}
        assert len(given.choices) in (0, len(given.rows)) and len(given.usual) in (0, len(given.rows))
        assert all(Path(clip).is_file() for row in given.rows for clip in row.clips)
        if name in ("few-shot", "query only"):
            assert all(row.output in choices for row, choices in zip(given.rows, given.choices))
    assert {len(row.clips) for row in asked["few-shot"].rows} == {3}
    assert {len(row.clips) for row in asked["query only"].rows} == {1}
    assert [row.output for row in asked["query only"].rows] == [row.output for row in asked["few-shot"].rows]
    assert all(len(row.meta["labels"]) == 1 for row in (*asked["named"].rows, *asked["unseen"].rows))


def test_the_truth_scores_one_and_the_table_holds_it(tool, file, asked, tmp_path):
    runs = tool.plan(file, tmp_path, 2, 8)[:2]
    results = tool.Scorer(asked)(Knowing(asked), lambda what, done, total: None)
    for name, value in results["measures"].items():
        assert tool.bounds(value)[0] == 1.0, name
        assert len(results["answers"][name]) == len(asked[name].rows)
    runs[0].folder.mkdir(parents=True)
    results |= {"seconds": {"training": {"align": 90.0}}, "questions": 8}
    (runs[0].folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match="was scored with --questions 8, not 9"):
        tool.report(tmp_path, [replace(runs[0], questions=9)], asked)
    table = tool.report(tmp_path, runs, asked)
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines() if line.startswith("| ")}
    assert list(cells) == ["variant", runs[0].variant.replace("_", " "), "chance", "most frequent answer"]
    first = [cell.strip() for cell in cells[runs[0].variant.replace("_", " ")]]
    assert first[0] == "1" and first[1] == "1.00" and first[-1] == "1.5"
    assert first[4].startswith("1.00 (0.7")  # 12 of 12 questions say no more
    assert cells["chance"][4].strip() == "0.50"  # of two ways
    assert (tmp_path / "table.md").read_text().startswith(table) and (tmp_path / "compare.png").stat().st_size > 1000
    told = json.loads((tmp_path / "results.json").read_text())
    assert told[runs[0].variant]["few-shot"]["value"] == 1.0


def test_seeds_are_pooled(tool):
    both = tool.pooled([{"right": 1, "of": 4}, {"right": 3, "of": 4}])
    assert both == {"right": 4, "of": 8} and tool.cell(both) == "0.50 (0.22-0.78)"
    means = tool.pooled([{"mean": 0.2, "error": 0.03, "of": 9}, {"mean": 0.4, "error": 0.04, "of": 9}])
    assert means["mean"] == pytest.approx(0.3) and means["error"] == pytest.approx(0.025)  # sqrt(9 + 16) / 2


def test_what_cannot_be_compared(tool, file, tmp_path, capsys):
    with pytest.raises(ConfigError, match="no stage of ltu_tiny trains the task tagging"):
        tool.source_of(load_config_file("ltu/tiny").get_config(), "tagging")
    out = ["--out", str(tmp_path), "--config", str(file.path)]
    assert tool.main([*out, "--only", "nothing"]) == 2
    assert "--only nothing: no such variant; there are apt_tiny" in capsys.readouterr().err
    assert tool.main([*out, "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(file.sweep())
    with pytest.raises(SystemExit):
        tool.main([*out, "--seeds", "0"])
