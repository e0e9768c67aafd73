"""Rows for training on text alone: captions of manifests, descriptions of labels, tags."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from alm_jax.cli.main import main
from alm_jax.core.errors import ConfigError, DataError, EndpointError
from alm_jax.data.endpoint import Endpoint, EndpointAsker
from alm_jax.data.rows import read_rows
from alm_jax.data.tasks.audiotia import (
    DATA_SETS,
    AskedDescriptions,
    described_by_rule,
    text_rows,
    usable,
    with_captions,
)
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.registry import make_rows
from alm_jax.data.tasks.source import Tasks
from tests.data.endpoints import said, serving

DOG, RAIN = (
    LabelledClip(Path("a/dog.wav"), labels=("dog bark",)),
    LabelledClip(Path("a/r.wav"), labels=("rain", "thunder")),
)
TOLD = replace(DOG, path=Path("a/told.wav"), captions=("A dog barks.", "Barking."))


def test_the_published_mixture():
    assert len(DATA_SETS) == 23 and sum(each.weight for each in DATA_SETS.values()) == 1690
    assert DATA_SETS["clotho"] == ("audio caption clotho", 40, True)
    untrained = {"emotion", "vocalsound", "esc", "urban", "bjo", "genres", "sdd"}  # of MATS-Audio
    assert {name for name, each in DATA_SETS.items() if not each.audio} == untrained


def test_rules_name_every_label_and_nothing_else():
    told = described_by_rule([DOG.labels, RAIN.labels] * 20, 0)
    assert told == described_by_rule([DOG.labels, RAIN.labels] * 20, 0) != described_by_rule([DOG.labels] * 40, 1)
    assert all("dog bark" in text.lower() for text in told[::2]) and len(set(told[::2])) > 5
    assert all("rain" in text.lower() and "thunder" in text.lower() for text in told[1::2])
    assert all(text[0].isupper() and text.endswith(".") and "{" not in text for text in told)


def test_rows_have_the_caption_that_is_asked_for():
    clips = with_captions([DOG, TOLD], described_by_rule, 0)
    assert clips[1] is TOLD and len(clips[0].captions) == 1
    rows = list(text_rows(make_rows(clips, ("tagging", "captioning")), clips, "single event"))
    assert [row.caption for row in rows] == [clips[0].captions[0], "A dog barks.", clips[0].captions[0], *TOLD.captions]
    assert [row.output for row in rows[2:]] == [row.caption for row in rows[2:]]
    assert all(row.instruction.startswith("[single event] ") and row.audio_id == "" for row in rows)  # no such files
    with pytest.raises(DataError, match="1 clips have neither a caption nor labels"):
        with_captions([replace(DOG, labels=())], described_by_rule, 0)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A dog barks in a yard.", "A dog barks in a yard."),
        ('dog bark -> "A dog barks."', "A dog barks."),
        ("Sure!", ""),
        ("[insert sound here] barks loudly", ""),
        ("word " * 90, ""),
    ],
)
def test_what_is_a_description(answer, text):
    assert usable(answer) == text


def test_a_model_is_asked_once_for_each_set_of_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("alm_jax.data.endpoint._LONGEST_PAUSE", 0.01)
    journal = tmp_path / "journal.jsonl"

    def reply(number, prompt):
        return 200, said("Heavy rain falls under thunder." if "rain; thunder ->" in prompt[-20:] else "No.")

    with serving(reply) as server:
        describe = AskedDescriptions(EndpointAsker(Endpoint(server.url, "m", pause=0.01), journal, workers=1))
        told = describe([RAIN.labels, DOG.labels, RAIN.labels], 0)
        assert told[0] == told[2] == "Heavy rain falls under thunder."
        assert told[1] == described_by_rule([RAIN.labels, DOG.labels], 0)[1]  # three answers, none of use
        assert len(server.prompts) == 4
        assert describe([RAIN.labels], 0) == told[:1] and len(server.prompts) == 4
    with serving(lambda number, prompt: (503, "")) as server, pytest.raises(EndpointError, match="is kept"):
        ask = EndpointAsker(Endpoint(server.url, "m", tries=2, pause=0.01), journal, workers=1)
        AskedDescriptions(ask)([("cat",)], 0)


def test_the_command_and_the_source(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    clips = [{"audio_id": "nowhere.wav", "labels": ["dog bark"]}, {"audio_id": "b.wav", "captions": ["Rain falls."]}]
    manifest, out = tmp_path / "clips.json", tmp_path / "rows.jsonl"
    manifest.write_text(json.dumps(clips))
    asked = ["tasks", str(manifest), "--task", "captioning", "--out", str(out)]
    assert main([*asked, "--tag", "x"]) == 2 and "--tag 'x' goes with --captions" in capsys.readouterr().err
    assert main([*asked, "--captions", "--tag", "audio caption"]) == 0
    rows = read_rows(out)
    assert [row.caption for row in rows.rows] == [row.output for row in rows.rows]
    assert rows[1].caption == "Rain falls." and rows[1].instruction.startswith("[audio caption] ")
    source = Tasks(str(manifest), ("captioning",), captions=True, tag="audio caption")
    same = read_rows(source.write(tmp_path / "cache"))
    assert list(same.rows) == [replace(row, dataset="clips") for row in rows.rows]
    with pytest.raises(ConfigError, match="tag 'x' is of rows with captions"):
        Tasks(str(manifest), ("captioning",), tag="x")
