"""`alm tasks`: what it writes, and what it says of mistakes."""

from __future__ import annotations

import json

import pytest

from alm_jax.cli.main import main
from alm_jax.data.manifest import choose_clips
from alm_jax.data.rows import read_rows
from alm_jax.data.scenes import SceneConfig, write_scenes
from alm_jax.data.tasks.clips import read_clips
from alm_jax.data.tasks.registry import TASKS, make_rows
from tests.data.endpoints import said, serving


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "scenes"
    write_scenes(folder, choose_clips("shipped")[0], SceneConfig(seconds=4.0), 6, 0)
    return folder


def test_every_task_about_scenes(scenes, tmp_path, capsys):
    names = [name for name, task in TASKS.items() if name != "few_shot" and not task.asks]
    out = scenes / "rows.jsonl"
    assert main(["tasks", str(scenes), "--task", ", ".join(names), "--out", str(out), "--seed", "2"]) == 0
    rows = read_rows(out)
    made = list(make_rows(read_clips(scenes), names, seed=2, dataset="scenes"))
    assert [(row.instruction, row.output) for row in rows] == [(row.instruction, row.output) for row in made]
    told, err = capsys.readouterr()
    assert told.startswith(f"{len(rows)} rows (6 tagging, 6 captioning, ") and told.endswith(
        f"about 6 clips in {out}\n"
    )
    assert err == "" and all(rows.clip_path(clip).is_file() for row in rows for clip in row.clips)
    before = out.read_bytes()
    assert main(["tasks", str(scenes), "--task", "tagging", "--out", str(out)]) == 2
    assert "rows.jsonl is there already; give a new file" in capsys.readouterr().err and out.read_bytes() == before


def test_episodes_of_the_shipped_clips(tmp_path):
    args = ["--few-shot.ways", "5", "--few-shot.episodes", "7", "--split", "train"]
    assert main(["tasks", "shipped", "--task", "few_shot", "--out", str(tmp_path / "r.jsonl"), *args]) == 1
    args[-1] = "all"
    assert main(["tasks", "shipped", "--task", "few_shot", "--out", str(tmp_path / "r.jsonl"), *args]) == 0
    rows = read_rows(tmp_path / "r.jsonl")
    assert len(rows) == 7 and {len(row.clips) for row in rows} == {6}


def test_questions_by_an_endpoint_go_on_after_it_failed(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alm_jax.data.endpoint._LONGEST_PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    out = tmp_path / "rows.jsonl"
    answer = "\n".join(f"- Is it {word}? - yes" for word in ("wet", "dry", "near", "far", "old"))

    def run(url):
        args = ["--writer", url, "--model", "m", "--nlar.pairs", "4"]
        return main(["tasks", str(scenes), "--task", "nlar", "--out", str(out), *args])

    with serving(lambda n, prompt: (200, said(answer)) if n < 3 else (500, "")) as server:
        assert run(server.url) == 1
        assert server.headers["Authorization"] == "Bearer secret"
    error = capsys.readouterr().err
    assert "what was answered is kept: the same command goes on from there" in error and error.count("\n") == 1
    assert not out.exists() and len((tmp_path / "rows.jsonl.journal.jsonl").read_text().splitlines()) == 3
    with serving(lambda n, prompt: (200, said(answer))) as server:
        assert run(server.url) == 0
        assert len(server.prompts) == 5
    assert capsys.readouterr().out == f"40 rows (40 nlar) about 6 clips in {out}\n"
    assert "secret" not in (tmp_path / "rows.jsonl.journal.jsonl").read_text()


def test_open_questions_in_batches(scenes, tmp_path, capsys):
    out, given = tmp_path / "rows.jsonl", tmp_path / "given.jsonl"
    asked = ["tasks", str(scenes), "--task", "open_ended,ltu_temporal", "--out", str(out), "--writer", "batch"]
    asked += ["--model", "m", "--open-ended.questions", "2", "--closed-ended", "1"]
    assert main(asked) == 1
    error = capsys.readouterr().err
    assert error.startswith("alm: error: 6 requests for m in ") and error.count("\n") == 1 and not out.exists()
    requests = [json.loads(line) for line in (tmp_path / "rows.jsonl.batch-1.jsonl").open()]
    assert all("Sound Events: Sound of" in request["body"]["messages"][1]["content"] for request in requests)
    text = '[{"q": "What is heard?", "a": "Sounds."}, {"q": "Who is %d?", "a": "It is unclear."}]'
    lines = [
        {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": json.loads(said(text % i))}}
        for i, request in enumerate(requests)
    ]
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*asked, "--answers", str(given)]) == 0
    told = capsys.readouterr().out
    assert "12 open_ended" in told and "50.0% of questions and 0.0% of answers are unique, 50.0% of answers say" in told
    rows = list(read_rows(out))
    assert {row.meta["answerable"] for row in rows if row.task == "open_ended"} == {True, False}
    for row in rows:
        assert row.instruction.startswith("Closed-ended question: ") is (row.task == "ltu_temporal")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["shipped", "--task", "open_ended"], 2, "open_ended is written by a language model, and the writer is rules"),
        (["shipped", "--task", "open_ended", "--writer", "batch"], 2, "the writer is batch, and no model is named"),
        (
            ["shipped", "--task", "tagging", "--answers", "x"],
            2,
            "answers of a batch are given, and the writer is rules",
        ),
        (["shipped", "--task", "tagging", "--closed-ended", "2"], 2, "closed_ended is 2.0; expected a share, 0 to 1"),
        (["shipped", "--task", "tagging", "--workers", "0"], 2, "--workers 0: expected 1 or more"),
        (["shipped", "--task", "ltu_features"], 1, "ltu_features needs clips with labels, and events with features"),
        (["shipped", "--task", "singing"], 2, "task singing; expected some of tagging, captioning, answering"),
        (["shipped", "--task", ","], 2, "task missing; expected some of"),
        (["shipped"], 2, "missing from alm tasks: --task NAME[,NAME] tasks, parted by commas (required)"),
        (["nowhere", "--task", "tagging"], 1, "nowhere: no such file or folder"),
        (["shipped", "--task", "nlar"], 1, "needs two clips or more with events (label, onset, offset); 0 of 47"),
        (["shipped", "--task", "captioning"], 1, "task captioning needs clips with captions; none of 47 has them"),
        (["shipped", "--task", "few_shot", "--few-shot.shots", "9"], 1, "need 4 labels of 10 clips or more; no labels"),
        (["shipped", "--task", "few_shot", "--few-shot.ways", "1"], 2, "expected at least 2 ways"),
        (["shipped", "--task", "tagging", "--split", "test"], 1, "shipped: no split test; clips in folders have all"),
        (["shipped", "--task", "nlar", "--writer", "gpt"], 2, "endpoint 'gpt': expected rules or a URL such as"),
        (["shipped", "--task", "nlar", "--writer", "http://localhost:1"], 2, "no model is named; give the name"),
    ],
)
def test_mistakes(tmp_path, capsys, args, code, message):
    assert main(["tasks", *args, "--out", str(tmp_path / "rows.jsonl")]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "rows.jsonl").exists()


def test_annotations_that_are_unsure_and_clips_that_are_missing(tmp_path, scenes):
    clip = str(next((scenes / "scenes").glob("*.flac")))
    events = [{"label": "dog", "onset": i, "offset": i + 1, "confidence": 0.5 + i / 4} for i in range(2)]
    records = [{"audio_id": clip, "events": events}, {"audio_id": "gone.wav", "labels": ["x"]}]
    (tmp_path / "clips.json").write_text(json.dumps(records))
    args = ["tasks", str(tmp_path / "clips.json"), "--task", "counting", "--out", str(tmp_path / "rows.jsonl")]
    assert main([*args, "--min-confidence", "0.6"]) == 1
    assert main([*args, "--min-confidence", "0.6", "--skip-missing"]) == 0
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.output == "1"
