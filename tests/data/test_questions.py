"""Questions about scenes: answers against what hand-made scenes hold, and scores against hand-made predictions."""

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from alm_jax.core.errors import DataError, UsageError
from alm_jax.data.manifest import read_manifest, shipped_sounds
from alm_jax.data.questions import QUESTION_KINDS, majority_answers, make_rows, score
from alm_jax.data.scenes import Event, Scene, SceneConfig, compose

VOCABULARY = ("dog bark", "siren", "door", "rain", "wind chime")


def event(phrase: str, onset: float, offset: float, level=-20.0, centroid=1000.0, countable=True) -> Event:
    return Event(phrase.replace(" ", "_"), phrase, onset, offset, 0.0, level, centroid, countable, f"{phrase}/a.wav")


def scene_of(*events: Event, background: str | None = None) -> Scene:
    return Scene(events=events, background=background, seconds=10.0, sample_rate=16000, seed=0)


TWO = scene_of(
    event("dog bark", 0.5, 0.9, centroid=500.0),
    event("dog bark", 1.5, 1.9, centroid=500.0),
    event("siren", 1.7, 4.25, level=-30.0, centroid=2500.0),
    background="rain",
)


def ask(scene: Scene, kind: str, seeds=range(40), vocabulary=VOCABULARY) -> list[dict]:
    """The rows of one kind that differ, over seeds."""
    rows = [row for seed in seeds for row in make_rows(scene, "a.flac", [kind], seed, vocabulary=vocabulary)]
    return [json.loads(text) for text in sorted({json.dumps(row) for row in rows})]


def outputs(scene: Scene, kind: str) -> set[str]:
    return {row["output"] for row in ask(scene, kind)}


def test_rows_have_the_fields_of_ltu():
    rows = make_rows(TWO, "scenes/000001.flac", QUESTION_KINDS, 0, vocabulary=VOCABULARY)
    assert [row["task"] for row in rows] == list(QUESTION_KINDS)
    for row in rows:
        assert list(row) == ["instruction", "input", "audio_id", "caption", "dataset", "task", "output", "meta"]
        assert row["caption"] == rows[1]["output"].removeprefix("Audio caption: ") != ""
        assert (row["input"], row["audio_id"], row["dataset"]) == ("", "scenes/000001.flac", "scenes")
        assert row["instruction"] and row["output"] and "{" not in row["instruction"]
        assert json.loads(json.dumps(row)) == row


def test_seed_decides_and_kinds_do_not_disturb_each_other():
    def rows(kinds, seed):
        return make_rows(TWO, "a", kinds, seed, vocabulary=VOCABULARY)

    assert rows(QUESTION_KINDS, 5) == rows(QUESTION_KINDS, 5) != rows(QUESTION_KINDS, 6)
    assert rows(["count"], 5)[0] in rows(QUESTION_KINDS, 5)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_every_kind_is_asked_in_several_ways(kind):
    assert len({row["instruction"].replace("siren", "dog bark") for row in ask(TWO, kind)}) >= 4


def test_answers_of_a_known_scene():
    assert outputs(TWO, "events") == {"Labels: dog bark; siren"}
    assert outputs(TWO, "caption") == {"Audio caption: dog bark 2 times, joined by siren, with rain in the background."}
    barks, siren = "dog bark: [0.5s-0.9s]; dog bark: [1.5s-1.9s]", "siren: [1.7s-4.2s]"
    assert outputs(TWO, "when") == {f"{barks}; {siren}", barks, siren}
    assert outputs(TWO, "count") == {"It is heard 2 times.", "It is heard 1 time."}
    assert outputs(TWO, "first") == {"First: dog bark"}
    assert outputs(TWO, "order") == {"Order: dog bark; siren"}
    bark, wail = "low-pitched, short, loud -> dog bark", "high-pitched, long, quiet -> siren"
    assert outputs(TWO, "features") == {f"{bark}; {wail}", bark, wail}
    assert outputs(TWO, "presence") == {"Yes, it is heard.", "No, it is not heard."}


def test_questions_about_one_sound_name_it():
    for row in ask(TWO, "count"):
        assert ("dog bark" in row["instruction"]) == (row["meta"]["count"] == 2)
    for row in ask(TWO, "when") + ask(TWO, "features"):
        named = {phrase for phrase in ("dog bark", "siren") if phrase in row["instruction"]}
        assert {phrase for phrase in ("dog bark", "siren") if phrase in row["output"]} == (
            named or {"dog bark", "siren"}
        )
    for row in ask(TWO, "presence"):
        assert ("Yes" in row["output"]) == any(phrase in row["instruction"] for phrase in ("dog bark", "siren"))


def test_absent_sounds_are_neither_events_nor_the_background():
    missing = {row["meta"]["missing"] for row in ask(TWO, "unanswerable")}
    assert missing == {"door", "wind chime"}
    for row in ask(TWO, "unanswerable"):
        assert row["meta"]["missing"] in row["instruction"]
        assert row["output"] == (
            f"It cannot be determined from the audio, because the sound of {row['meta']['missing']} is not heard."
        )
    for kind in ("presence", "unanswerable"):
        assert not ask(TWO, kind, vocabulary=("dog bark", "siren", "rain"))
    # Nothing but the sound tells such questions from those that have an answer.
    answerable = {row["instruction"] for kind in ("when", "count", "features") for row in ask(TWO, kind)}
    wordings = {text.replace("siren", "*").replace("dog bark", "*") for text in answerable}
    assert {re.sub("door|wind chime", "*", row["instruction"]) for row in ask(TWO, "unanswerable")} <= wordings


def test_presence_is_balanced():
    answers = Counter(make_rows(TWO, "a", ["presence"], s, vocabulary=VOCABULARY)[0]["output"] for s in range(400))
    assert abs(answers["Yes, it is heard."] - 200) < 50  # five standard deviations


def test_kinds_that_do_not_apply():
    lone = scene_of(event("siren", 1.0, 2.0))
    assert not ask(lone, "first") and not ask(lone, "order")
    together = scene_of(event("siren", 1.0, 2.0), event("door", 1.1, 1.5))
    assert not ask(together, "first") and not ask(together, "order")
    barks = scene_of(event("dog bark", 1.0, 2.0, countable=False), event("dog bark", 3.0, 4.0, countable=False))
    assert not ask(barks, "count")
    assert outputs(barks, "caption") == {"Audio caption: dog bark."}


def test_caption_follows_runs():
    scene = scene_of(event("door", 0, 1), event("siren", 2, 3), event("door", 4, 5), event("door", 6, 7))
    assert outputs(scene, "caption") == {"Audio caption: door, then siren, then door 2 times."}


def test_first_among_two_and_all():
    scene = scene_of(event("door", 0, 1), event("siren", 2, 3), event("dog bark", 4, 5))
    seen = defaultdict(set)
    for row in ask(scene, "first", range(200)):
        named = frozenset(phrase for phrase in ("door", "siren", "dog bark") if phrase in row["instruction"])
        seen[named].add(row["output"])
    assert seen == {
        frozenset(): {"First: door"},
        frozenset({"door", "siren"}): {"First: door"},
        frozenset({"door", "dog bark"}): {"First: door"},
        frozenset({"siren", "dog bark"}): {"First: siren"},
    }
    pairs = {row["instruction"] for row in ask(scene, "first", range(200)) if "siren" in row["instruction"]}
    orders = {text.index("siren") < text.index("door") for text in pairs if "door" in text}
    assert orders == {True, False}  # the wording does not give the answer away


@pytest.fixture(scope="module")
def composed() -> list[tuple[Scene, dict[str, dict]]]:
    clips = read_manifest(shipped_sounds())
    words = sorted({clip.phrase for clip in clips})
    scenes = [compose(clips, SceneConfig(), seed) for seed in range(40)]
    return [
        (scene, {row["task"]: row for row in make_rows(scene, "a", QUESTION_KINDS, scene.seed, vocabulary=words)})
        for scene in scenes
    ]


def test_answers_of_composed_scenes(composed):
    """Every answer, read from its text, against the scene's events."""
    asked = Counter()
    for scene, rows in composed:
        asked.update(list(rows))
        phrases = [e.phrase for e in sorted(scene.events, key=lambda e: e.onset)]
        in_order = list(dict.fromkeys(phrases))
        assert rows["events"]["output"] == "Labels: " + "; ".join(in_order)
        times = re.findall(r"([a-z ]+): \[(\d+\.\d)s-(\d+\.\d)s\]", rows["when"]["output"])
        truth = [(e.phrase, f"{e.onset:.1f}", f"{e.offset:.1f}") for e in scene.events]
        listed = [(phrase.strip(), a, b) for phrase, a, b in times]
        assert listed in [truth] + [[t for t in truth if t[0] == phrase] for phrase in in_order]
        if "count" in rows:
            asked_about = max((p for p in in_order if p in rows["count"]["instruction"]), key=len)
            assert int(re.search(r"\d+", rows["count"]["output"])[0]) == phrases.count(asked_about)
        if "first" in rows:
            named = [p for p in in_order if f" {p}" in rows["first"]["instruction"]]
            assert rows["first"]["output"].removeprefix("First: ") == (named or in_order)[0]
        if "order" in rows:
            assert rows["order"]["output"] == "Order: " + "; ".join(in_order)
        for part in rows["features"]["output"].split("; "):
            words, phrase = part.split(" -> ")
            e = next(e for e in scene.events if e.phrase == phrase)
            assert ("low-pitched" in words) == (e.centroid_hz < 800)
            assert ("high-pitched" in words) == (e.centroid_hz > 2000)
            assert ("long" in words) == (e.offset - e.onset >= 1)
            assert ("quiet" in words) == (e.level_db <= max(x.level_db for x in scene.events) - 6)
        caption = rows["caption"]["output"]
        assert [p for p in in_order if p in caption] == in_order
        assert (scene.background or "background") in caption or scene.background is None
        assert rows["unanswerable"]["meta"]["missing"] not in phrases
    assert min(asked.values()) > 15 and set(asked) == set(QUESTION_KINDS)


def test_truth_scores_one_and_other_answers_less(composed):
    for (_, rows), (_, others) in pairwise(composed):
        for kind, row in rows.items():
            assert score(kind, row["output"], row) == 1.0
            assert score(kind, row["output"].upper(), row) == 1.0
            assert score(kind, "", row) == 0.0
            if kind in ("events", "when", "features", "caption") and not set(
                str(row["meta"]).replace("'", " ").split()
            ) & set(str(others.get(kind, {}).get("meta")).replace("'", " ").split()):
                assert score(kind, others[kind]["output"], row) == 0.0


LABELS = {"labels": ["dog bark", "siren"]}
ONE = {"sounds": ["dog bark", "dog bark", "siren"]}
WHEN = {"events": [["dog bark", 1.0, 2.0], ["siren", 5.0, 8.0]]}
ALONE = {"events": [["dog bark", 1.0, 2.0], ["dog bark", 4.0, 5.0]]}
FEATURES = {"features": {"dog bark": ["low-pitched", "short", "loud"], "siren": ["high-pitched", "long", "quiet"]}}


@pytest.mark.parametrize(
    "kind, answer, prediction, expected",
    [
        ("events", LABELS, "Labels: Siren; Dog bark.", 1.0),
        ("events", LABELS, "Labels: siren", 2 / 3),
        ("events", LABELS, "siren; door", 0.5),
        ("events", LABELS, "Labels: siren; siren; siren", 2 / 3),
        ("events", LABELS, "dogs barking and a distant siren", 1.0),
        ("events", LABELS, "The sound of a siren, a door and rain", 2 / 5),
        ("events", LABELS, "There is a siren.", 2 / 3),
        ("events", {"labels": ["wind"]}, "Labels: wind chime", 0.0),
        ("events", {"labels": ["revving, vroom", "rain"]}, "Labels: revving, vroom; rain", 1.0),
        ("events", {"labels": ["revving, vroom"]}, "Labels: revving, vroom", 1.0),
        ("caption", ONE, "Audio caption: dog bark 2 times, then siren, with rain in the background.", 1.0),
        ("caption", ONE, "Audio caption: dog bark twice, joined by siren.", 1.0),
        ("caption", ONE, "Audio caption: dog bark, then siren.", 0.8),
        ("caption", ONE, "siren, then dog bark", 0.4),
        ("caption", ONE, "A dog bark followed by a siren", 0.8),
        ("caption", ONE, "Audio caption: door 3 times.", 0.0),
        ("caption", ONE, "Audio caption: siren 1000000000 times.", 2 / 23),
        ("order", {"sounds": ["door", "siren", "rain"]}, "Order: door; rain; siren", 2 / 3),
        ("order", {"sounds": ["door", "siren"]}, "door, then siren", 1.0),
        ("when", WHEN, "dog bark: [1.4s-2.5s]; siren: [4.1s-8.9s]", 1.0),
        ("when", WHEN, "dog bark: [1.4s-3.5s]; siren: [5.0s-8.0s]", 0.5),
        ("when", WHEN, "siren: [1.0s-2.0s]; dog bark: [5.0s-8.0s]", 0.0),
        ("when", WHEN, "dog bark: [1.0s-2.0s]", 2 / 3),
        ("when", WHEN, "The dog bark is heard from 1 to 2 seconds; the siren between 5 s and 8 s.", 1.0),
        ("when", WHEN, "[1.0s-2.0s]", 0.0),
        ("when", ALONE, "[1.0s-2.0s], [4.0s-5.0s]", 1.0),
        ("when", ALONE, "It occurs from 1.0s to 2.0s and from 4.0s to 5.0s", 1.0),
        ("when", ALONE, "dog bark: [1.0s-2.0s]; dog bark: [1.0s-2.0s]", 0.5),
        ("when", ALONE, "siren: [1.0s-2.0s]; siren: [4.0s-5.0s]", 0.0),
        ("count", {"count": 2}, "It is heard 2 times.", 1.0),
        ("count", {"count": 2}, "twice", 1.0),
        ("count", {"count": 2}, "The dog barks two times.", 1.0),
        ("count", {"count": 2}, "3", 0.0),
        ("count", {"count": 1}, "A single time.", 1.0),
        ("count", {"count": 1}, "It cannot be determined from the audio.", 0.0),
        ("first", {"first": "siren", "choices": ["dog bark", "siren"]}, "First: siren", 1.0),
        ("first", {"first": "siren", "choices": ["dog bark", "siren"]}, "The siren, then the dog barks.", 1.0),
        ("first", {"first": "siren", "choices": ["dog bark", "siren"]}, "Dog bark before the siren", 0.0),
        ("first", {"first": "wind chime", "choices": ["wind", "wind chime"]}, "First: wind chime", 1.0),
        ("first", {"first": "siren", "choices": ["dog bark", "siren"]}, "First: door", 0.0),
        ("features", FEATURES, "low-pitched, short, loud -> dog bark; high-pitched, long, quiet -> siren", 1.0),
        ("features", FEATURES, "Low pitched, short, loud → Dog bark", 2 / 3),
        ("features", FEATURES, "high-pitched, short, loud -> dog bark", 4 / 9),
        ("features", FEATURES, "The dog bark is short and loud. The siren is long.", 2 / 3),
        ("features", FEATURES, "loud -> door", 0.0),
        ("features", {"features": {"door": ["low-pitched", "short", "loud"]}}, "It is short and loud.", 0.8),
        ("presence", {"present": True}, "Yes.", 1.0),
        ("presence", {"present": True}, "The siren can be heard.", 1.0),
        ("presence", {"present": True}, "No, it is not heard.", 0.0),
        ("presence", {"present": False}, "It isn't present.", 1.0),
        ("presence", {"present": False}, "no", 1.0),
        ("presence", {"present": False}, "nothing", 0.0),
        ("unanswerable", {"missing": "siren"}, "It cannot be determined, because no siren is heard.", 1.0),
        ("unanswerable", {"missing": "siren"}, "The siren is not heard.", 1.0),
        ("unanswerable", {"missing": "siren"}, "It cannot be determined, because no door is heard.", 0.0),
        ("unanswerable", {"missing": "siren"}, "The siren is heard 2 times.", 0.0),
    ],
)
def test_scores(kind, answer, prediction, expected):
    assert score(kind, prediction, {"meta": answer}) == pytest.approx(expected, abs=1e-12)


def test_majority_answers():
    rows = [{"task": "count", "output": text} for text in ("b", "c", "c", "b", "a")] + [
        {"task": "first", "output": "x"}
    ]
    assert majority_answers(rows) == {"count": "b", "first": "x"}


def test_majority_answers_score_low(composed):
    """A constant answer earns little but where there are few answers: what a model is compared with."""
    rows = [row for _, by_kind in composed for row in by_kind.values()]
    constant = majority_answers(rows)
    means = {kind: [] for kind in QUESTION_KINDS}
    for row in rows:
        means[row["task"]].append(score(row["task"], constant[row["task"]], row))
    means = {kind: sum(values) / len(values) for kind, values in means.items()}
    assert all(means[kind] < 0.3 for kind in set(QUESTION_KINDS) - {"count", "presence"}), means
    assert means["count"] < 0.7 and means["presence"] < 0.7


def test_bad_input():
    with pytest.raises(UsageError, match="question kind smell: expected events, "):
        make_rows(TWO, "a", ["events", "smell"], 0)
    with pytest.raises(UsageError, match="question kind smell: expected events, "):
        score("smell", "yes", {"meta": {}})
    with pytest.raises(DataError, match=r"row of b\.wav: its meta is no answer of kind count"):
        score("count", "yes", {"audio_id": "b.wav", "meta": {}})
    with pytest.raises(DataError, match="meta"):
        score("count", "yes", {"audio_id": str(Path("b.wav"))})
