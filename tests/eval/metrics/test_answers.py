"""Short answers, options, counts and their spread, by hand; a judge that is scripted."""

import json
import math
import re
import time

import numpy as np
import pytest

from alm_jax.core.errors import DataError
from alm_jax.data.endpoint import Endpoint
from alm_jax.eval.avqa import PROMPT
from alm_jax.eval.metrics.answers import (
    ToRate,
    agreed,
    count,
    first_named,
    followed,
    pitch,
    rated,
    short_match,
    two_scores,
    yes_or_no,
)
from alm_jax.eval.metrics.options import air_bench_prompt, avqa_prompt, mmau_match, mmau_prompt, option_of
from alm_jax.eval.metrics.spread import by_group, counted, mean_interval
from tests.data.endpoints import said, serving

OPTIONS = ["Wind", "Wind chime", "A dog, barking", "Rain"]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", 1),
        ("(c) wind", 2),
        ("B. Wind chime", 1),
        ("(D)", 3),
        ("D) it rains", 3),
        ("The answer is C.", 2),
        ("wind", 0),
        ("a dog barking", 2),
        ("I hear a wind chime there.", 1),
        ("2", 2),
        ("2 dogs", None),
        ("A dog is heard", None),
        ("wind and rain", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_option_of(text, option):
    assert option_of(text, OPTIONS) == option


def test_mmau_match():
    options = ["Male voice", "Female voice", "No voice"]
    assert mmau_match("Male voice", "It is a male voice.", options)
    assert not mmau_match("Male voice", "male", options)  # a word is missing
    assert not mmau_match("Male voice", "a male voice, no female voice", options)  # words of wrong options
    assert not mmau_match("Male voice", "", options)


def test_prompts():
    assert avqa_prompt("What?", ["w", "x", "y", "z"]) == PROMPT.format("w", "x", "y", "z", question="What?")
    assert air_bench_prompt("What?", ["x", "y"]).endswith("choose A or B or C or D.\nWhat?\nA. x\nB. y")
    assert mmau_prompt("What?", ["x", "y"]) == (
        "What? Select one option: x; y Respond with exactly one of the options above."
    )


def test_short_answers():
    assert [yes_or_no(text) for text in ("Yes, it is.", "there is no dog", "maybe", "Know yes")] == [
        True,
        False,
        None,
        True,
    ]
    assert [count(text) for text in ("twice", "It is heard 3 times.", "2.5 s", "None")] == [2, 3, None, None]
    assert [
        pitch(text) for text in ("The pitch is high.", "a deep, low-pitched hum", "high to low", "medium", " ")
    ] == [
        1,
        -1,
        0,
        0,
        None,
    ]
    assert short_match("yes", "Yes.") and not short_match("yes", "dogs") and short_match("no", "No, it is not")
    assert short_match("7", "seven sounds") and not short_match("7", "17")
    assert short_match("unknown", "That cannot be told.") and not short_match("unknown", "first")
    assert short_match("the dog", "A dog barks") and not short_match("dog", "dogs")


def test_agreed():
    assert agreed(["Yes", "no", "yes."]) == "yes" and agreed(["dog"]) == "dog"
    assert agreed(["a", "dog", "cat"]) is None and agreed(["yes", "no"]) is None


def test_first_named():
    like = lambda clause, a, b: int("clap" in clause)
    assert first_named("A dog barks, then rain falls", "rain", "dog", like) == "dog"
    assert first_named("The clapping starts first, while steps follow", "footsteps", "applause", like) == "applause"
    assert first_named("steps, then clapping", "footsteps", "applause", like) == "footsteps"
    assert first_named(" ", "rain", "dog", like) is None


def test_counted():
    """Once is heard as 1 and 2, twice as 3 and 3, one answer has no number."""
    found = counted([1, 1, 2, 2, 2], [1, 2, 3, 3, math.nan])
    assert found.ratio == pytest.approx(3 / 1.5) and found.clips == 4
    assert found.pearson == pytest.approx(np.corrcoef([1, 1, 2, 2], [1, 2, 3, 3])[0, 1])
    assert found.exact == 1 / 4 and found.error == 3 / 4
    assert math.isnan(counted([1, 1], [1, 1]).pearson) and math.isnan(counted([1, 1], [1, 1]).ratio)
    assert counted([1], [math.nan]).clips == 0


def test_intervals():
    mean, half = mean_interval([1, 0, 1, 1])
    assert mean == 0.75 and half == pytest.approx(1.96 * math.sqrt((3 * 0.0625 + 0.5625) / 3) / 2)
    assert math.isnan(mean_interval([1.0])[1]) and math.isnan(mean_interval([])[0])
    assert {k: v.tolist() for k, v in by_group(["b", "a", "b"], [1, 2, 3]).items()} == {"a": [2], "b": [1, 3]}


def test_a_judge(tmp_path):
    journal = tmp_path / "judge.jsonl"
    answers = lambda number, prompt: (200, said("Yes." if "Response: It barks" in prompt else "no"))
    with serving(answers) as server:
        endpoint = Endpoint(server.url, "judge", temperature=0.0)
        assert followed(["What?", "Why?"], ["It barks", "Hm"], endpoint, journal) == [True, False]
        assert server.prompts[0].startswith("Below is a pair of question and response.")
        assert followed(["What?", "Why?"], ["It barks", "Hm"], endpoint, journal) == [True, False]
        assert len(server.prompts) == 2 == len([json.loads(line) for line in journal.open()])  # nothing is asked again
    with serving(lambda number, prompt: (200, said("maybe"))) as server:
        with pytest.raises(DataError, match="neither yes nor no"):
            followed(["What?"], ["It barks"], Endpoint(server.url, "judge"), tmp_path / "other.jsonl")
        assert len(server.prompts) == 3


def test_answers_are_judged_in_their_order(tmp_path):
    """Whichever judgement comes first, the file is the same."""
    questions = [f"Is it {i}?" for i in range(8)]

    def late(number, prompt):
        time.sleep(0.02 if "Is it 0?" in prompt else 0)
        return 200, said("yes")

    with serving(late) as server:
        followed(questions, ["It is."] * 8, Endpoint(server.url, "judge"), tmp_path / "judge.jsonl")
    told = [json.loads(line)["prompt"] for line in (tmp_path / "judge.jsonl").open()]
    assert [re.search(r"Is it \d\?", prompt)[0] for prompt in told] == questions


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 6", (8, 6)),
        ("Scores:\n10 1\nAssistant 1 is better.", (10, 1)),
        ("7, 9.", (7, 9)),
        ("11 3", None),
        ("0 3", None),
        ("Assistant 1: 8, Assistant 2: 6", None),
        ("8", None),
    ],
)
def test_two_scores(text, scores):
    assert two_scores(text) == scores


def test_a_rating_is_the_mean_of_both_orders(tmp_path):
    items = [ToRate("A dog barks.", "What?", "A dog.", "A cat."), ToRate("Rain.", "Where?", "Outside.", "Here.")]

    def rate(number, prompt):
        if "Rain." in prompt:
            return 200, said("9 2" if "1s Answer]\nOutside." in prompt else "none")
        return 200, said("8 4" if "1s Answer]\nA dog.\n" in prompt else "6 8")

    with serving(rate) as server:
        endpoint = Endpoint(server.url, "judge", temperature=0.0)
        # The response is second, then first: 4 and 6. Of the other question one order alone is rated.
        assert rated(items, endpoint, tmp_path / "j.jsonl") == [(8.0, 5.0), (9.0, 2.0)]
        asked = len(server.prompts)
        assert asked == 3 + 3 and any("Description]\nA dog barks.\n[Question]" in text for text in server.prompts)
        assert rated(items, endpoint, tmp_path / "j.jsonl") == [(8.0, 5.0), (9.0, 2.0)] and len(server.prompts) == asked
    with serving(lambda number, prompt: (200, said("good"))) as server:
        assert rated(items[:1], Endpoint(server.url, "judge"), tmp_path / "other.jsonl") == [None]
