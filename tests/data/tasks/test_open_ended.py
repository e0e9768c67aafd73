"""Audio Instruction Generation: prompts as published, what is read from answers, which pairs are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.data.endpoint import Endpoint, EndpointAsker
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.data.tasks.ltu import Sounds
from alm_jax.data.tasks.open_ended import (
    Diversity,
    OpenEnded,
    answers_it,
    diversity,
    pairs_of,
    prompt,
    qualified,
)
from alm_jax.data.tasks.registry import TaskConfig, make_rows
from tests.data.endpoints import said, serving

# As the authors' sample of what they told of a clip has it.
CHURCH = LabelledClip(
    Path("clips/church.wav"),
    labels=("Church bell", "Music"),
    captions=("A church bell rings with accompanying music.",),
    events=(
        ClipEvent("Church bell", 0.0, 3.0, features=("semi-musical and reverberant",)),
        ClipEvent("Music", 0.0, 10.0, features=("clear", "full", "and vibrant")),
        ClipEvent("Church bell", 4.0, 10.0, features=("semi-musical and reverberant",)),
    ),
    seconds=10.0,
)


def test_the_prompt_of_the_paper(repo):
    system, told = prompt(CHURCH, Sounds([CHURCH], None), 10, 0)
    assert told == (
        "Sound Events: Sound of Church bell (Semi-musical and reverberant): [0.0s-3.0s, 4.0s-10.0s]; "
        "Sound of Music (Clear, full, and vibrant): [0.0s-10.0s]; "
        "Description: A church bell rings with accompanying music."
    )
    paper = repo.parent / "shared" / "papers" / "001_93733777df735eb9.txt"
    if not paper.is_file():
        pytest.skip("the paper is not present: ../shared/papers")
    text = paper.read_text(encoding="utf-8")
    start, end = text.index("“Based on the following audio clip, generate 10"), text.index("explanation.”")
    # A caption of a figure stands in its midst; the rest is equal but for blanks and quotation marks.
    told = text[start:end].split(" Figure 3: ")
    told = told[0] + told[1].partition("dataset.\n")[2]
    plain = lambda text: "".join(text.split()).replace("-", "").translate({ord(mark): "" for mark in '“”"'})
    assert plain(told + "explanation.") == plain(system)


@pytest.mark.parametrize(
    ("known", "provided", "told"),
    [
        (
            {"captions": (), "events": ()},
            "the sound events appear in the audio clip.",
            "Sound Events: Sound of Church bell; Sound of Music",
        ),
        (
            {"labels": (), "events": (), "captions": ("A bell.", "It rings.")},
            "a description of the content of the audio clip.",
            "Description: A bell. It rings.",
        ),
        (
            {"captions": (), "labels": ("Bell",), "events": (ClipEvent("Bell", 0.0, 1.0),)},
            "the sound events appear in the audio clip, and corresponding onset and offset time stamps.",
            "Sound Events: Sound of Bell: [0.0s-1.0s]",
        ),
    ],
)
def test_what_is_not_known_is_not_told(known, provided, told):
    clip = replace(CHURCH, **known)
    system, user = prompt(clip, Sounds([clip], None), 3, 0)
    assert "generate 3 different types" in system and f"is provided: {provided}\n" in system and user == told


@pytest.mark.parametrize(
    ("answer", "pairs"),
    [
        ('{"q": "A?", "a": "b"}\n{"q": "C?", "a": "d"}', [("A?", "b"), ("C?", "d")]),
        ('[{"q": "A?", "a": "b"}, {"q": "C?", "a": "d"}]', [("A?", "b"), ("C?", "d")]),
        ('Here you are:\n```json\n{"pairs": [{"Q": "A?", "A": "b"}]}\n```', [("A?", "b")]),
        ('1. {"question": "A?", "answer": "b"}', [("A?", "b")]),
        (
            '{"q": "How would you describe\nthe tone?", "a": "It is\nhigh."}',
            [("How would you describe the tone?", "It is high.")],
        ),
        (
            '{"q": "What is "it"?", "a": "A "dog", {maybe}"} {"q": "C?", "a": "d"}',
            [('What is "it"?', 'A "dog", {maybe}'), ("C?", "d")],
        ),
        ('{"q": "A?"} {"q": 1, "a": "b"} {"q": "C?", "a": "d"', []),
        ("Sorry.", []),
    ],
)
def test_what_is_read_from_answers(answer, pairs):
    assert pairs_of(answer) == pairs


def test_questions_come_once():
    answers = ['{"q": "What is heard?", "a": "A bell."}', '{"q": "What is heard", "a": "Music."} {"q": "", "a": "x"}']
    answers.append('{"q": "What is <audio>?", "a": "A bell."}')
    assert qualified(answers) == [("What is heard?", "A bell.")]


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        ("It cannot be determined from the audio that the bell is large.", False),
        ("There is not enough information to tell.", False),
        ("It is unclear.", False),
        ("The audio does not provide the place.", False),
        ("The bell is loud enough to be heard from afar.", True),
        ("It is a church bell, since it rings for long.", True),
    ],
)
def test_answers_that_decline(answer, answers):
    assert answers_it(answer) is answers


def pairs(clip, declined, count=10):
    lines = [{"q": f"{clip} {i}?", "a": "It cannot be determined." if i < declined else f"{i}."} for i in range(count)]
    return "\n".join(map(json.dumps, lines))


def open_ended(clips, ask, **options):
    return list(make_rows(clips, ["open_ended"], TaskConfig(open_ended=OpenEnded(**options)), ask=ask))


def test_rows_by_a_model(tmp_path):
    other = replace(CHURCH, path=Path("clips/b.wav"), events=(), captions=(), labels=("Dog",))
    nothing = LabelledClip(Path("clips/c.wav"), questions=(("Is it wet?", "yes"),))

    def reply(number, prompt):
        if prompt.startswith("describe"):
            return 200, said(f"Sharp and {number}.")
        return 200, said(pairs(prompt[:30], 2, 4 if "Church" in prompt else 10))

    user = lambda body: body["messages"][-1]["content"]
    with serving(reply, prompt=user) as server:
        ask = EndpointAsker(Endpoint(server.url, "m"), tmp_path / "j.jsonl", workers=1)
        rows = open_ended([CHURCH, other, nothing], ask)
        assert [prompt.split()[0] for prompt in server.prompts] == ["describe"] * 10 + ["Sound"] * 4
        assert server.prompts[0] == (
            "describe the acoustic characteristic of Dog sound precisely with a sentence less than 10 words"
        )
        assert server.body["messages"][0]["role"] == "system"
        assert [Path(row.audio_id).name for row in rows] == ["church.wav"] * 4 + ["b.wav"] * 10
        assert [row.meta["answerable"] for row in rows] == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 8
        assert open_ended([CHURCH, other, nothing], ask) == rows and len(server.prompts) == 14
        # 2 of 12 is less than a fifth, 3 of 13 more.
        fewer = open_ended([CHURCH, other], ask, unanswerable=0.2)
        assert sum(not row.meta["answerable"] for row in fewer) == 2 and len(fewer) == 12
        assert [row for row in rows if row.meta["answerable"]] == open_ended([CHURCH, other], ask, unanswerable=0.0)
        assert open_ended([CHURCH, other], ask, unanswerable=1.0) == rows
    with pytest.raises(ConfigError, match="task open_ended is written by a language model"):
        open_ended([CHURCH], None)


def test_how_much_rows_differ():
    rows = [AudioRow(question, output=answer) for question, answer in (("A?", "x"), ("a", "y"), ("B?", "unclear"))]
    assert diversity(rows) == Diversity(3, 1 / 3, 1.0, 1 / 3)


def test_options():
    for options in ({"questions": 0}, {"unanswerable": 1.5}):
        with pytest.raises(ConfigError, match="expected"):
            OpenEnded(**options)
