"""NLAR's questions by a language model: what qualifies, and that what was answered is never asked for again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from alm_jax.core.errors import EndpointError
from alm_jax.data.endpoint import Endpoint, EndpointAsker
from alm_jax.data.tasks.asked import contradicts, description, qualified
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.data.tasks.reasoning import Pair, Reasoning, sounds_of
from alm_jax.data.tasks.registry import TaskConfig, make_rows
from tests.data.endpoints import said, serving

CREAK = LabelledClip(
    Path("clips/creak.wav"), events=tuple(ClipEvent("wood creaking", i, i + 0.5) for i in range(6)), seconds=10.0
)
STORM = LabelledClip(
    Path("clips/storm.wav"),
    events=(
        ClipEvent("thunder", 2.0, 3.0, features=("explosive", "rumbling")),
        ClipEvent("rain", 0.0, 10.0, features=("gentle",), countable=False),
    ),
    seconds=10.0,
)
PAIR = Pair(sounds_of(CREAK), sounds_of(STORM), "")

# The example of the paper's table III: its answers are of this pair.
PAPER = """\
- are there 6 wood creaking and 2 thunder sounds in total? - no
- how many wood creaking or thunder are there in total? - 7
- does the second recording more likely to make one feel calm? - yes
- in which recording the events are more frequent? - first
- the frequency of wood creaking in the first recording is 6 times more than the frequency of thunder. - yes
"""


def test_the_paper_s_example_qualifies():
    found = qualified([PAPER], PAIR)
    assert [question.answer for question in found] == ["no", "7", "yes", "first", "yes"]
    assert found[1].text == "How many wood creaking or thunder are there in total?"
    assert qualified([PAPER, PAPER.upper()], PAIR) == found  # each once


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("1. Which recording is louder? - The second recording.", "second"),
        ("* How many sounds are there? -> three", "3"),
        ("- Is the storm near? — It is unclear from the audio.", "unknown"),
        ("- In which recording is thunder heard? - Second", "second"),
        ("- In which recording is thunder heard? - first", None),
        ("- How many times is wood creaking heard? - 5", None),
        ("- How many times is wood creaking heard in the second recording? - 0", "0"),
        ("- How often is rain heard? - 3", "3"),  # it cannot be counted, so nothing shows that this is wrong
        ("- How many wood creaking are there? - cannot be known", "unknown"),
        ("- What does it sound like? - like a house that falls apart slowly", None),
        ("Here are your questions:", None),
        ("- No answer?", None),
        ("- Two?\n- Is it wet? - yes", "yes"),
    ],
)
def test_what_qualifies(line, answer):
    assert [question.answer for question in qualified([line], PAIR)] == ([answer] if answer else [])


def test_contradictions_turn_with_the_order():
    swapped = Pair(PAIR.second, PAIR.first, "")
    for ordinal, wrong in (("first", False), ("second", True)):
        assert contradicts("which recording contains wood creaking?", ordinal, PAIR) is wrong
        assert contradicts("which recording contains wood creaking?", ordinal, swapped) is not wrong


def test_descriptions():
    assert description('"A dull, hollow sound."\n') == "a dull, hollow sound"
    assert description("") == description("x (y)") == description("word " * 21) == ""


def reply_to(prompt):
    """A model that describes in words, and first writes too little about a pair."""
    if prompt.startswith("describe"):
        return "Rustic and creaky."
    told = prompt.rpartition("- First:\n")[2]
    return PAPER.replace("first", "<").replace("second", "first").replace("<", "second") if told[0] != "w" else PAPER


def nlar(ask):
    return list(make_rows([CREAK, STORM], ["nlar"], TaskConfig(nlar=Reasoning(pairs=1)), ask=ask))


def test_rows_by_a_model(tmp_path):
    with serving(lambda n, prompt: (200, said("hm" if n in (0, 2) else reply_to(prompt)))) as server:
        endpoint = Endpoint(server.url, "m", pause=0.01)
        ask = EndpointAsker(endpoint, tmp_path / "j.jsonl", workers=1)
        rows = nlar(ask)
        # "hm" is a description, and no list of questions: that order is asked about twice
        assert [prompt.split()[0] for prompt in server.prompts] == ["describe", "Based", "Based", "Based"]
        assert "describe the acoustic characteristic of wood creaking precisely" in server.prompts[0]
        assert "wood creaking (hm) [6 times]" in server.prompts[1]
        assert "thunder (explosive, rumbling) [1 times];\nrain (gentle) [throughout the recording]" in server.prompts[1]
        assert len(rows) == 10 and {row.audio_id for row in rows[:5]} != {row.audio_id for row in rows[5:]}
        assert [row.output for row in rows if "more frequent" in row.instruction] in (
            ["first", "second"],
            ["second", "first"],
        )
        problems = [json.loads(line).get("problem") for line in (tmp_path / "j.jsonl").read_text().splitlines()]
        assert problems == [None, None, "0 of 5 questions qualify", None]
        assert nlar(ask) == rows and len(server.prompts) == 4


def test_a_model_that_never_says_anything_of_use(tmp_path):
    with serving(lambda n, prompt: (200, said("- Is it wet? - yes" if n == 3 else "¯\\_(ツ)_/¯ " * 30))) as server:
        rows = nlar(EndpointAsker(Endpoint(server.url, "m"), tmp_path / "j.jsonl", attempts=2, workers=1))
        assert len(server.prompts) == 6  # a description and two orders, twice each
        assert [row.output for row in rows] == ["yes"]  # what qualifies is kept
        assert not re.search(r"\(ツ", server.prompts[2])
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(line["problem"] for line in lines)


def test_an_endpoint_that_fails(tmp_path):
    ask = EndpointAsker(Endpoint("http://127.0.0.1:9", "m", tries=2, pause=0.01), tmp_path / "j.jsonl")
    with pytest.raises(EndpointError, match="no answer in 2 tries"):
        nlar(ask)


def test_sounds_that_have_features_are_not_described(tmp_path):
    creak = replace(CREAK, events=tuple(replace(event, features=("creaky",)) for event in CREAK.events))
    with serving(lambda n, prompt: (200, said(PAPER))) as server:
        ask = EndpointAsker(Endpoint(server.url, "m"), tmp_path / "j.jsonl")
        list(make_rows([creak, STORM], ["nlar"], TaskConfig(nlar=Reasoning(pairs=1)), ask=ask))
        assert [prompt.split()[0] for prompt in server.prompts] == ["Based", "Based"]
