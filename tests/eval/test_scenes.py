"""The scene protocol with answerers whose scores are known."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alm_jax.data.manifest import read_manifest, shipped_sounds
from alm_jax.data.rows import read_rows
from alm_jax.data.scenes import SceneConfig, write_scenes
from alm_jax.eval.answers import answer_rows, encode_clips, features_of
from alm_jax.eval.scenes import score_scenes

KINDS = ("events", "first", "presence", "count")


class Answerer:
    """Stands in for a model: `encode` gives each clip its own features, `answer` looks a reply up by both."""

    def __init__(self, replies=None, default=""):
        self.replies, self.default = replies or {}, default
        self.encoded, self.numbers = [], {}
        self.tokenizer = SimpleNamespace(encode=str.split)

    def encode(self, clips):
        self.encoded.append(list(clips))
        for clip in clips:
            self.numbers.setdefault(str(clip), float(len(self.numbers)))
        return np.array([[[[self.numbers[str(clip)]]]] for clip in clips])

    def answer(self, questions, features, *, max_new_tokens, **_):
        self.longest = max_new_tokens
        by_number = {number: clip for clip, number in self.numbers.items()}
        named = [[Path(by_number[float(np.asarray(f).ravel()[0])]).name for f in clips] for clips in features]
        return [self.replies.get((q, *clips), self.default) for q, clips in zip(questions, named)]


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory):
    clips = read_manifest(shipped_sounds())
    return write_scenes(tmp_path_factory.mktemp("scenes"), clips, SceneConfig(), 6, 0, kinds=KINDS)


def _truth(rows):
    return {(rows[i].instruction, Path(rows[i].audio_id).name): rows[i].output for i in range(len(rows))}


def test_the_truth_scores_one_and_silence_nothing(rows_path):
    rows = read_rows(rows_path)
    knowing, silent = Answerer(_truth(rows)), Answerer()
    silent.numbers = knowing.numbers
    told = []
    table, records = score_scenes(
        {"knowing": knowing, "silent": silent},
        rows_path,
        list(rows.rows),
        kinds=KINDS,
        per_kind=4,
        progress=lambda name, done, total: told.append((name, done, total)),
    )
    assert [row.kind for row in table] == list(KINDS)
    for row in table:
        assert 0 < row.rows <= 4
        assert row.scores["knowing"] == 1.0 and row.scores["silent"] == 0.0
        assert 0.0 <= row.scores["majority"] <= 1.0
    assert len(records) == sum(row.rows for row in table)
    assert told[-1] == ("silent", len(records), len(records))
    assert knowing.longest == max(len(record["output"].split()) for record in records) + 2
    assert all(record["answers"]["knowing"] == record["output"] for record in records)


def test_every_clip_is_encoded_once():
    model = Answerer()
    clips = [Path(name) for name in "abcab"]
    features = encode_clips(model, clips, batch_size=2)
    assert list(features) == [Path("a"), Path("b"), Path("c")]
    assert model.encoded == [[Path("a"), Path("b")], [Path("c"), Path("c")]]


def test_answers_come_in_the_order_of_the_rows(rows_path):
    rows = read_rows(rows_path)
    model = Answerer(_truth(rows))
    features = encode_clips(model, [rows.clip_path(rows[i].audio_id) for i in range(len(rows))])
    each = [[features[rows.clip_path(rows[i].audio_id)]] for i in range(len(rows))]
    assert answer_rows(model, list(rows.rows), each, batch_size=5) == [rows[i].output for i in range(len(rows))]


def test_rows_of_several_clips(tmp_path):
    rows = [
        {"instruction": "Which is louder?", "audio_id": ["a.wav", "b.wav"], "output": "first"},
        {"instruction": "What is heard?", "audio_id": "b.wav", "output": "rain"},
        {"instruction": "Why?", "audio_id": "", "output": "because"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    rows = read_rows(tmp_path / "rows.json")
    model = Answerer({("Which is louder?", "a.wav", "b.wav"): "1", ("What is heard?", "b.wav"): "2", ("Why?",): "3"})
    features = features_of(model, rows, range(3))
    assert [len(clips) for clips in features] == [2, 1, 0]
    assert answer_rows(model, list(rows.rows), features, batch_size=2) == ["1", "2", "3"]
