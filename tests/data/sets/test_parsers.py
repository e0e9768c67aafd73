"""Every set's parser, on its published layout in little."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.sets.audioset import class_balanced
from alm_jax.data.sets.base import Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.registry import SETS, find_set
from tests.data.sets.miniatures import MINIATURES, Want


def read(name, root):
    report = Report()
    files = Files(root, report)
    SETS[name].check(files)
    return list(SETS[name].read(files, report)), files, report


@pytest.mark.parametrize("name", SETS)
def test_clips(name, tmp_path):
    wanted = MINIATURES[name](tmp_path)
    items, files, report = read(name, tmp_path)
    found = {
        item.id: Want(
            item.split,
            item.labels,
            item.captions,
            tuple((event.label, event.onset, event.offset) for event in item.events),
            item.questions,
            item.source,
        )
        for item in items
    }
    assert found == wanted and len(items) == len(wanted) and not report.problems
    assert {item.split for item in items} <= set(SETS[name].splits)
    for item in items:
        assert any(map(files.find, item.audio)), f"{item.id}: none of {item.audio}"


@pytest.mark.parametrize("name", SETS)
def test_files_that_are_missing_are_named(name, tmp_path):
    dataset = SETS[name]
    with pytest.raises(DataError) as error:
        read(name, tmp_path)
    groups = {each.group or each.pattern for each in dataset.expected}
    assert dataset.url in str(error.value) and str(error.value).count(";") >= len(groups)
    assert all(each.pattern in str(error.value) for each in dataset.expected)


ODD = (None, "", "odd", 7, -1.5, [], {}, [7], ["odd"], {"odd": [None]}, True)


@pytest.mark.parametrize("name", SETS)
def test_odd_values_are_reported_or_read(name, tmp_path):
    """Every value of every JSON and YAML table, replaced by others in turn: a line in the report, never an error."""
    MINIATURES[name](tmp_path)
    load = {".json": json.loads, ".yaml": yaml.safe_load}
    dump = {".json": json.dumps, ".yaml": yaml.safe_dump}
    for table in sorted(path for path in tmp_path.rglob("*") if path.suffix in load):
        text = table.read_text()
        held = load[table.suffix](text)
        for place in places(held):
            for odd in ODD:
                table.write_text(dump[table.suffix](replaced(held, place, odd)))
                try:
                    read(name, tmp_path)
                except DataError as error:
                    assert table.name in str(error), f"{table.name} with {odd!r} at {place}"
                except Exception as error:
                    pytest.fail(f"{table.name} with {odd!r} at {place}: {type(error).__name__}: {error}")
        table.write_text(text)


def places(held, at=()):
    """The keys that lead to each value in nested lists and dicts."""
    children = enumerate(held) if isinstance(held, list) else held.items() if isinstance(held, dict) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def replaced(held, place, value):
    held = copy.deepcopy(held)
    inside = held
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return held


def test_what_sets_say_besides(tmp_path):
    MINIATURES["clotho_aqa"](tmp_path / "aqa")
    first = read("clotho_aqa", tmp_path / "aqa")[0][0]
    assert first.meta == {
        "answers": {"Are there birds?": ["yes", "no", "yes"]},
        "majority": {"Are there birds?": "yes"},
    }
    MINIATURES["mmau"](tmp_path / "mmau")
    mini, full = read("mmau", tmp_path / "mmau")[0]
    assert mini.meta == {"question": "Which?", "choices": ["Man", "Woman"], "task": "speech", "difficulty": "hard"}
    assert full.meta["question"] == "What?" and full.questions == ()
    MINIATURES["avqa"](tmp_path / "avqa")
    asked = read("avqa", tmp_path / "avqa")[0][1].meta["asked"]
    assert asked == [
        {"question": "What falls?", "choices": ["water", "rain"], "answer": 1, "relation": "Both", "type": "What"}
    ]
    MINIATURES["openaqa"](tmp_path / "openaqa")
    assert read("openaqa", tmp_path / "openaqa")[0][0].meta == {"tasks": ["cla_label", "open"], "datasets": ["as_20k"]}


def test_the_class_balanced_selection():
    # Speech is borne by 3 clips, dog by 2, gush by 1: weights 1/3, 1/3 + 1/2, 1/3 + 1, 1/2.
    labels = [("speech",), ("speech", "dog"), ("speech", "gush"), ("dog",)]
    assert class_balanced(labels, 2) == [1, 2]
    assert class_balanced(labels, 3) == [1, 2, 3]
    assert class_balanced(labels, 9) == [0, 1, 2, 3]
    assert class_balanced([("dog",), ("dog",)], 1) == [0]


def test_the_selection_is_of_clips_that_are_there(tmp_path, monkeypatch):
    MINIATURES["audioset_ltu"](tmp_path)
    (tmp_path / "balanced/-0DdlOuIFUI.wav").unlink()  # the clip of most weight
    read_ltu = SETS["audioset_ltu"].read
    items = list(read_ltu(Files(tmp_path, Report()), Report(), count=1))
    assert [item.id for item in items] == ["--2_BBVHAAA_30000"]


def test_no_such_set():
    with pytest.raises(ConfigError, match="did you mean 'esc50'"):
        find_set("esc51")
