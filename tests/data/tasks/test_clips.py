import json

import numpy as np
import pytest
import soundfile

from alm_jax.core.errors import DataError
from alm_jax.data.manifest import choose_clips
from alm_jax.data.scenes import SceneConfig, write_scenes
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip, read_clips

DOG = ClipEvent("dog bark", 0.5, 1.25, level_db=-20.0, features=("loud", "short"))
RAIN = ClipEvent("rain", 0.0, 4.0, confidence=0.6, countable=False)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.zeros(8), 8000)
    return tmp_path


def record(**fields):
    return {"audio_id": "a.wav"} | fields


def test_json_of_everything(folder):
    events = [
        {"label": "dog_bark", "onset": 0.5, "offset": 1.25, "level_db": -20, "features": ["loud", "short"]},
        {"label": "rain", "onset": 0, "offset": 4, "confidence": 0.6, "countable": False},
    ]
    questions = [{"question": "Is it wet?", "answer": "yes"}]
    records = [
        record(labels=["wind"], captions=["A dog in the rain."], events=events, questions=questions, seconds=4),
        {"audio_id": "b.wav", "labels": ["wind"], "split": "test"},
    ]
    for name, text in (("a.json", json.dumps(records)), ("a.jsonl", "\n\n".join(map(json.dumps, records)) + "\n")):
        (folder / name).write_text(text)
        first, second = read_clips(folder / name)
        assert first == LabelledClip(
            folder / "a.wav",
            labels=("wind", "rain", "dog bark"),
            captions=("A dog in the rain.",),
            events=(RAIN, DOG),
            questions=(("Is it wet?", "yes"),),
            seconds=4.0,
        )
        assert second == LabelledClip(folder / "b.wav", labels=("wind",), split="test")
        assert read_clips(folder / name, split="test") == [second]
        # what is known from unsure events alone goes with them
        assert read_clips(folder / name, min_confidence=0.7)[0].labels == ("wind", "dog bark")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.5\tdog_bark\na.wav\t0\t1\train\n", ("rain", "dog bark")),
        ("file_name,caption_1,caption_2\na.wav,One.,Two.\n", ("One.", "Two.")),
        ("file_name,QuestionText,answer\na.wav,Wet?,yes\na.wav,Dry?,no\n", (("Wet?", "yes"), ("Dry?", "no"))),
        ("file,labels,split\na.wav,dog bark;rain,x\n", ("dog bark", "rain")),
        ("filename,category\na.wav,dog_bark\n", ("dog bark",)),
    ],
)
def test_tables_as_they_are_published(folder, text, expected):
    (folder / "t.csv").write_text(text)
    (clip,) = read_clips(folder / "t.csv")
    assert expected in (tuple(event.label for event in clip.events), clip.labels, clip.captions, clip.questions)


def test_folders_and_the_shipped_clips(tmp_path):
    for label in ("dog_bark", "rain"):
        (tmp_path / label).mkdir()
        for i in range(2):
            soundfile.write(tmp_path / label / f"{i}.wav", np.zeros(8), 8000)
    assert [clip.labels for clip in read_clips(tmp_path)] == [("dog bark",)] * 2 + [("rain",)] * 2
    assert len(read_clips(tmp_path, split="unseen")) == 2
    assert len(read_clips("shipped")) == len(choose_clips("shipped")[0])
    with pytest.raises(DataError, match="no split test; clips in folders have all, train and unseen"):
        read_clips(tmp_path, split="test")


def test_composed_scenes(tmp_path):
    clips, _ = choose_clips("shipped")
    write_scenes(tmp_path, clips, SceneConfig(seconds=4.0), 2, 0)
    scenes = read_clips(tmp_path)
    assert scenes == read_clips(tmp_path / "scenes.jsonl") and len(scenes) == 2
    listed = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    for clip, scene in zip(scenes, listed):
        told = [(e["phrase"], e["onset"], e["offset"], e["level_db"]) for e in scene["events"]]
        assert [(e.label, e.onset, e.offset, e.level_db) for e in clip.events] == told
        assert set(clip.labels) == {e.label for e in clip.events} and clip.seconds == 4.0
        assert len(clip.captions) == 1 and not clip.captions[0].startswith("Audio caption")
        assert clip.questions and all(len(event.features) == 3 for event in clip.events)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[{]", "not a JSON array or JSON lines of clips"),
        ("a.json", '[{"labels": ["x"]}]', r"a.json\[0\]: no audio_id"),
        ("a.jsonl", '{"audio_id": "a.wav", "label": "x"}', "a.jsonl:1: unknown label; expected audio_id, labels"),
        ("a.json", json.dumps([record(labels=["a;b"])]), "labels is 'a;b'; expected the name of a sound"),
        ("a.json", json.dumps([record(events=[{"label": "x", "onset": 2, "offset": 1}])]), "lasts from 2 to 1 s"),
        (
            "a.json",
            json.dumps([record(events=[{"label": "x", "onset": 0}])]),
            r"events\[0\].offset is None; expected a n",
        ),
        ("a.json", json.dumps([record(questions=[{"question": "x"}])]), "expected a question and an answer"),
        ("a.json", json.dumps([{"audio_id": "c.wav"}]), "1 of 1 clips are not there, .*c.wav for one"),
        ("a.csv", "name,label\na.wav,x\n", "columns name,label; expected file and any of"),
        ("a.csv", "file,label,onset,offset\na.wav,x,zero,1\n", "line 2.onset is 'zero'; expected a number"),
        ("a.csv", "file,label,onset,offset\na.wav,,0,1\n", "an onset or offset without a label"),
        ("a.csv", "", "columns are missing"),
        ("a.csv", "file,label\n", "no clips"),
    ],
)
def test_mistakes_are_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_clips(folder / name)


def test_missing_files_may_be_left_out(folder):
    (folder / "a.json").write_text(json.dumps([record(), {"audio_id": "gone.wav"}]))
    with pytest.raises(DataError, match="1 of 2 clips are not there"):
        read_clips(folder / "a.json")
    assert len(read_clips(folder / "a.json", skip_missing=True)) == 1
