"""Rows of every task, against the annotations that they are made from."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.composed import Scenes
from alm_jax.data.manifest import choose_clips
from alm_jax.data.questions import score
from alm_jax.data.rows import AUDIO_MARK, read_rows
from alm_jax.data.scenes import SceneConfig, write_scenes
from alm_jax.data.tasks import prompts
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip, read_clips
from alm_jax.data.tasks.few_shot import FewShot
from alm_jax.data.tasks.reasoning import Pair, Reasoning, render, sounds_of
from alm_jax.data.tasks.registry import TASKS, TaskConfig, make_rows, write_rows
from alm_jax.data.tasks.rules import KINDS
from alm_jax.data.tasks.source import Tasks, make_asker

CREAK = ("rustic", "rhythmic", "and creaky")
DOG = LabelledClip(
    Path("clips/dog.wav"),
    labels=("dog bark", "rain"),
    captions=("A dog in the rain.", "It rains."),
    events=(
        ClipEvent("rain", 0.0, 9.0, countable=False, level_db=-30.0, features=("quiet", "long")),
        ClipEvent("dog bark", 1.0, 2.5, level_db=-20.0, features=("loud",)),
        ClipEvent("dog bark", 3.0, 4.0, level_db=-20.0, features=("loud",)),
    ),
    questions=(("Is it wet?", "yes"),),
    seconds=10.0,
)
BELL = LabelledClip(
    Path("clips/bell.wav"), labels=("bell",), events=(ClipEvent("bell", 8.0, 9.5, level_db=-10.0),), seconds=10.0
)


def rows_of(task, clips, config=TaskConfig(), seed=0):
    return list(make_rows(clips, [task], config, seed))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, choose_clips("shipped")[0], SceneConfig(seconds=5.0), 12, 0)
    return folder


def test_prompts_are_those_of_the_paper(repo):
    paper = repo.parent / "shared" / "papers" / "000_b023c4e4cf0ff09f.txt"
    if not paper.is_file():
        pytest.skip("the paper is not present: ../shared/papers")
    text = paper.read_text(encoding="utf-8")
    table = text.partition("Audio Tagging\tAudio Captioning")[2].split("\n")[1:11]
    columns = list(zip(*(line.split("\t") for line in table)))
    ours = (prompts.TAGGING, prompts.CAPTIONING, prompts.DETECTION, prompts.RETRIEVAL, prompts.COUNTING)
    assert [tuple(filter(None, column)) for column in columns] == list(ours)
    assert list(map(len, ours)) == [10, 10, 10, 10, 5]
    assert prompts.DESCRIBE in text and prompts.FEW_SHOT in text
    for line in filter(None, prompts.RENDER.partition("{AUDIOS}")[0].split("\n")):
        assert line.replace("{NUMBER}", "5") in text


def filled(template):
    """What a prompt with its places filled in looks like."""
    return re.compile(re.sub(r"\\\{[A-Z]+\\\}", "(.+)", re.escape(template)))


def test_every_prompt_is_used_as_it_stands():
    used = {"tagging": prompts.TAGGING, "captioning": prompts.CAPTIONING, "detection": prompts.DETECTION}
    used |= {"retrieval": prompts.RETRIEVAL, "counting": prompts.COUNTING}
    for task, templates in used.items():
        found = {row.instruction for seed in range(60) for row in rows_of(task, [DOG], seed=seed)}
        for template in templates:
            assert any(filled(template).fullmatch(text) for text in found), template
        assert all(any(filled(t).fullmatch(text) for t in templates) for text in found)


def test_rows_about_one_clip():
    (tags,) = rows_of("tagging", [DOG])
    assert (tags.output, tags.audio_id, tags.task) == ("dog bark; rain", "clips/dog.wav", "tagging")
    assert [row.output for row in rows_of("captioning", [DOG])] == ["A dog in the rain.", "It rains."]
    (question,) = rows_of("answering", [DOG])
    assert (question.instruction, question.output) == ("Is it wet?", "yes")
    assert [row.output for row in rows_of("detection", [DOG])] == ["0.0s-9.0s.", "1.0s-2.5s; 3.0s-4.0s."]
    (count,) = rows_of("counting", [DOG])  # rain cannot be counted
    assert count.output == "2" and "dog bark" in count.instruction


def test_intervals_hold_what_is_told_of_them():
    answers = set()
    for seed in range(40):
        (row,) = rows_of("retrieval", [DOG], seed=seed)
        start, end = row.meta["interval"]
        assert f"{start:.1f}" in row.instruction and f"{end:.1f}" in row.instruction and 0 <= start < end <= 10
        shares = {e: min(e.offset, end) - max(e.onset, start) for e in DOG.events}
        assert row.output.split("; ") == list(dict.fromkeys(e.label for e, share in shares.items() if share > 0))
        assert all(share <= 0 or share >= 0.3 for share in shares.values())
        answers.add(row.output)
    assert answers == {"rain", "rain; dog bark"}


def test_published_scores_read_the_answers(scenes):
    kinds = {"tagging": "events", "retrieval": "events", "detection": "when", "counting": "count"}
    for row in make_rows(read_clips(scenes), kinds):
        assert score(kinds[row.task], row.output, {"meta": row.meta}) == 1.0, row


def test_rows_depend_on_seed_and_clip_alone(scenes):
    clips = read_clips(scenes)
    names = [name for name, task in TASKS.items() if name != "few_shot" and not task.asks]
    made = list(make_rows(clips, names, seed=1))
    assert made == list(make_rows(clips, names, seed=1))
    assert made != list(make_rows(clips, names, seed=2))
    assert rows_of("tagging", clips[3:4]) == rows_of("tagging", clips)[3:4]


def test_episodes():
    clips = read_clips("shipped")
    label_of = {str(clip.path): clip.labels[0] for clip in clips}
    rows = rows_of("few_shot", clips, TaskConfig(few_shot=FewShot(ways=3, shots=1, episodes=30)), seed=4)
    assert len(rows) == 30 and len({row.output for row in rows}) > 5
    for row in rows:
        assert len(set(row.clips)) == len(row.clips) == row.marks == 4
        _, *texts = row.instruction.split(AUDIO_MARK)
        told = [text.removeprefix("This is a sound of").strip() for text in texts]
        assert told == [*(label_of[clip] for clip in row.clips[:-1]), ""]
        assert row.output == label_of[row.clips[-1]] and row.meta["choices"] == sorted(told[:-1])
    places = Counter(row.instruction.split(AUDIO_MARK).index(f"This is a sound of {row.output}") for row in rows)
    assert len(places) == 3  # the right example stands anywhere
    assert len(rows_of("few_shot", clips)) == len(clips)


def test_examples_bear_one_label_of_their_episode():
    both = LabelledClip(Path("both.wav"), labels=("a", "b"))
    clips = [both] + [LabelledClip(Path(f"{label}{i}.wav"), labels=(label,)) for label in "ab" for i in range(3)]
    for row in rows_of("few_shot", clips, TaskConfig(few_shot=FewShot(2, 2, 40))):
        assert "both.wav" not in row.clips
    with pytest.raises(DataError, match=r"need 3 labels of 3 clips or more; 2 labels of 2 can be used; lower ways"):
        rows_of("few_shot", clips, TaskConfig(few_shot=FewShot(3, 2)))
    with pytest.raises(DataError, match=r"no labels of 2 can be used \(a has 4, b has 4\)"):
        rows_of("few_shot", clips, TaskConfig(few_shot=FewShot(2, 4)))
    with pytest.raises(DataError, match="bear one of them alone"):
        rows_of("few_shot", [both] * 4, TaskConfig(few_shot=FewShot(2, 1)))
    with pytest.raises(ConfigError, match="at least 2 ways, 1 shot"):
        FewShot(ways=1)


def test_recordings_are_rendered_as_in_the_paper():
    creak = LabelledClip(
        Path("a.wav"), events=tuple(ClipEvent("wood creaking", i, i + 0.5, features=CREAK) for i in range(6))
    )
    storm = LabelledClip(
        Path("b.wav"),
        events=(
            ClipEvent("thunder", 2.0, 3.0, features=("explosive", "rumbling", "and reverberating")),
            ClipEvent("rain", 0.0, 10.0, features=("gentle", "pitter-patter", "rhythmic"), countable=False),
        ),
    )
    text = render(Pair(sounds_of(creak), sounds_of(storm), ""))
    assert text in prompts.RENDER
    parts = [(0.0, 8.0), (0.0, 2.0), (4.0, 6.0), (8.0, 10.0)]
    rains = [ClipEvent("rain", *part, countable=False) for part in parts]
    clips = [LabelledClip(Path("c.wav"), events=(rain,), seconds=10.0) for rain in rains]
    where = ["throughout the recording", "in the beginning", "in the middle", "in the end"]
    assert [sounds_of(clip)[0].where for clip in clips] == where


def test_reasoning_by_rule():
    config = TaskConfig(nlar=Reasoning(pairs=1, questions=len(KINDS)))
    rows = rows_of("nlar", [DOG, BELL], config)
    one, other = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    assert {row.audio_id for row in one} == {row.audio_id[::-1] for row in other} == {one[0].audio_id}
    # both orders are asked the same; the answers turn with the order
    assert [row.meta for row in one] == [row.meta for row in other]
    opposite = {"first": "second", "second": "first"}
    for a, b in zip(one, other):
        if a.output in opposite:
            assert b.output == opposite[a.output], a
    heard = {row.meta["kind"]: row for row in one}
    assert heard.keys() == KINDS.keys() - {"frequent"}  # rain cannot be counted
    first = one[0].audio_id[0] == "clips/dog.wav"
    assert heard["louder"].output == ("second" if first else "first")
    assert heard["longest"].output == heard["kinds"].output == ("first" if first else "second")
    assert heard["unanswerable"].output == "unknown" and heard["shared"].output == "no"
    assert all(row.marks == 2 and row.instruction.endswith(row.meta["question"]) for row in rows)


def truth(question, first, second):
    """The answer to a rule's question by reading its text, independently of how it was drawn."""
    recordings = [[e.label for e in clip.events] for clip in (first, second)]
    found = re.search(r"the sound of (.+?)(?: or (.+?))?(?: heard| louder| last|\?)", question)
    labels = [label for label in found.groups() if label] if found else []
    counts = [sum(heard.count(label) for label in labels) for heard in recordings]
    if question.startswith(("How many", "How often")):
        return str(sum(counts))
    if claim := re.search(r"heard (\d+) times? in total", question):
        return "yes" if int(claim[1]) == sum(counts) else "no"
    if question.startswith(("In which recording is the sound", "Which recording has the sound")):
        return "both" if all(counts) else "first" if counts[0] else "second"
    if compared := re.search(r"more often in the (first|second)", question):
        more = counts[0] > counts[1] if compared[1] == "first" else counts[1] > counts[0]
        return "yes" if more else "no"
    if placed := re.search(r"heard in the (first|second) recording", question):
        return "yes" if counts[placed[1] == "second"] else "no"
    return None


def test_rules_tell_the_truth_of_scenes(scenes):
    clips = {str(clip.path): clip for clip in read_clips(scenes)}
    rows = rows_of("nlar", list(clips.values()), TaskConfig(nlar=Reasoning(pairs=30, questions=20)))
    checked = Counter()
    for row in rows:
        first, second = (clips[path] for path in row.clips)
        expected = truth(row.meta["question"], first, second)
        if expected is not None and row.output != "unknown":
            assert row.output == expected, row
            checked[row.meta["kind"]] += 1
    assert checked.keys() >= {"total", "claim", "place", "presence", "more_often"}
    assert {row.output for row in rows} >= {"yes", "no", "first", "second", "both", "unknown", "1", "2"}
    assert len({frozenset(row.clips) for row in rows}) == 30
    assert len({row.audio_id for row in rows}) == 60


def test_reasoning_needs_two_clips_with_events():
    with pytest.raises(DataError, match=r"two clips or more with events .*; 1 of 2 clips have them"):
        rows_of("nlar", [DOG, LabelledClip(Path("x.wav"), labels=("x",))])


@pytest.mark.parametrize(
    "task", [name for name, task in TASKS.items() if name not in ("nlar", "few_shot") and not task.asks]
)
def test_clips_without_what_a_task_needs(task):
    with pytest.raises(DataError, match=f"task {task} needs clips with .*; none of 1 has them"):
        rows_of(task, [LabelledClip(Path("x.wav"))])


def test_files_of_rows_are_read_again(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for i in range(2):
            soundfile.write(tmp_path / "clips" / label / f"{i}.wav", np.zeros(8), 8000)
    clips = read_clips(tmp_path / "clips")
    made = list(make_rows(clips, ["tagging", "few_shot"], TaskConfig(FewShot(2, 1)), dataset="d"))
    assert write_rows(tmp_path / "rows.jsonl", made) == {"tagging": 4, "few_shot": 4}
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row.output for row in rows] == [row.output for row in made]
    assert rows[0].audio_id == "clips/a/0.wav" and rows.clip_path(rows[0].audio_id).is_file()
    assert rows[0].dataset == "d" and len(rows[4].clips) == 3
    # clips elsewhere are named by their whole path; a failure leaves no file
    write_rows(tmp_path / "sub" / "rows.jsonl", made)
    assert read_rows(tmp_path / "sub" / "rows.jsonl")[0].audio_id == str(tmp_path / "clips" / "a" / "0.wav")
    with pytest.raises(DataError, match="task captioning needs clips with captions"):
        write_rows(tmp_path / "no.jsonl", make_rows(clips, ["tagging", "captioning"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "rows.jsonl", "sub"]


def test_tasks_of_a_config(tmp_path, scenes):
    source = Tasks(Scenes(3, scene=SceneConfig(seconds=4.0)), ("tagging", "nlar"), seed=3)
    shown = []
    path = source.write(tmp_path, progress=lambda done, total: shown.append((done, total)))
    assert shown[-1] == (3, 3)
    rows, stamp = read_rows(path), path.stat()
    assert {row.task for row in rows} == {"tagging", "nlar"} and {row.dataset for row in rows} == {"scenes"}
    assert all(rows.clip_path(clip).is_file() for row in rows for clip in row.clips)
    assert source.write(tmp_path) == path and path.stat() == stamp
    other = replace(source, seed=4).write(tmp_path)
    assert other != path and other.read_text() != path.read_text()
    assert len(read_rows(Tasks(str(scenes), ("counting",)).write(tmp_path))) > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("tagging", "singing")}, "task singing; expected some of tagging, captioning"),
        ({"tasks": ()}, "task missing; expected some of"),
        ({"writer": "gpt"}, "endpoint 'gpt': expected rules or a URL such as http://localhost"),
        ({"writer": "http://localhost"}, "no model is named"),
        ({"model": "gpt"}, "model gpt is named, and the writer is rules"),
        ({"tasks": ("open_ended",)}, "task open_ended is written by a language model, and the writer is rules"),
        ({"writer": "batch", "model": "gpt"}, "writer batch takes several rounds: write rows with alm tasks"),
    ],
)
def test_configs_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        Tasks(**{"clips": "shipped", "tasks": ("tagging",)} | change)


def test_keys_are_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    ask = make_asker("http://localhost:1/v1", "m", Path("journal"))
    assert ask.endpoint.key == "secret" and "secret" not in repr(ask)


def test_rows_as_they_are_written(tmp_path):
    write_rows(tmp_path / "rows.jsonl", rows_of("tagging", [DOG]))
    told = json.loads((tmp_path / "rows.jsonl").read_text())
    assert list(told) == ["instruction", "input", "audio_id", "dataset", "task", "output", "meta"]
