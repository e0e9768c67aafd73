"""LTU's closed-ended rows, against the paper's examples and the annotations that they are made from."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.tasks import ltu, ltu_prompts
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.data.tasks.registry import TaskConfig, make_rows
from alm_jax.eval.metrics.events import Event, events

SIREN = ("High-pitched and wailing",)
# Table 2 of the paper.
STREET = LabelledClip(
    Path("clips/street.wav"),
    labels=(
        "Ambulance (siren)",
        "Traffic noise, roadway noise",
        "Accelerating, revving, vroom",
        "Generic impact sounds",
    ),
    captions=("An ambulance siren echoes while traffic noise fades, and an engine revs.",),
    events=(
        ClipEvent("Ambulance (siren)", 0.0, 1.0, features=SIREN),
        ClipEvent("Traffic noise, roadway noise", 0.0, 10.0, features=("droning", "loud and intrusive")),
        ClipEvent("Accelerating, revving, vroom", 2.0, 10.0),
        ClipEvent("Generic impact sounds", 6.7, 6.8),
        ClipEvent("Ambulance (siren)", 8.0, 9.04),
    ),
    seconds=10.0,
)


def rows_of(task, clips, config=TaskConfig(), **options):
    return list(make_rows(clips, [task], config, **options))


def test_questions_are_those_of_the_paper(repo):
    paper = repo.parent / "shared" / "papers" / "001_93733777df735eb9.txt"
    if not paper.is_file():
        pytest.skip("the paper is not present: ../shared/papers")
    text = "".join(paper.read_text(encoding="utf-8").split()).lower().replace("-", "")
    for prompts in (ltu_prompts.CLASSIFICATION, ltu_prompts.FEATURES, ltu_prompts.CAPTIONING, ltu_prompts.TEMPORAL):
        assert "".join(prompts[0].split()).lower().replace("-", "") in text
    described = ltu_prompts.DESCRIBE.replace("{SOUND}", "{sound class name}")
    assert "".join(described.split()).replace("-", "") in text
    assert ltu_prompts.FIRST_OVER[0].replace(" ", "").lower() in text


def test_paraphrases_are_distinct():
    for name in ("CLASSIFICATION", "FEATURES", "CAPTIONING", "TEMPORAL", "TEMPORAL_ONE"):
        assert len(set(getattr(ltu_prompts, name))) == 10
    rows = rows_of("ltu_classification", [replace(STREET, path=Path(f"clips/{i}.wav")) for i in range(200)])
    assert {row.instruction for row in rows} == set(ltu_prompts.CLASSIFICATION)


def test_formats_of_answers():
    (row,) = rows_of("ltu_classification", [STREET])
    assert row.output == f"Labels: {'; '.join(STREET.labels)}"
    (row,) = rows_of("ltu_captioning", [STREET])
    assert row.output == f"Audio caption: {STREET.captions[0]}"
    (row,) = rows_of("ltu_features", [STREET])
    told = "High-pitched and wailing -> Ambulance (siren); Droning, loud and intrusive -> Traffic noise, roadway noise"
    assert row.output == told  # sounds that nobody describes are left out
    every, one, order = rows_of("ltu_temporal", [STREET])
    assert every.output == (
        "Ambulance (siren): [0.0s-1.0s, 8.0s-9.0s]; Traffic noise, roadway noise: [0.0s-10.0s]; "
        "Accelerating, revving, vroom: [2.0s-10.0s]; Generic impact sounds: [6.7s-6.8s]"
    )
    # The benchmark reads what training writes.
    assert sorted(events(every.output, STREET.labels)) == sorted(
        Event(event.label, event.onset, round(event.offset, 1)) for event in STREET.events
    )
    label = one.output.partition(": [")[0]
    assert label in one.instruction and {event[0] for event in one.meta["events"]} == {label}
    assert {row.task for row in (every, one, order)} == {"ltu_temporal"}


def at(*onsets, length=1.0):
    return LabelledClip(
        Path(f"clips/{onsets}.wav"),
        labels=tuple("abcdef"[: len(onsets)]),
        events=tuple(ClipEvent("abcdef"[i], onset, onset + length) for i, onset in enumerate(onsets)),
        seconds=10.0,
    )


def asked(name, clip, tries=20):
    """What a rule can ask about a clip: answers, or None where it asks nothing."""
    placed = ltu._placed(clip)
    found = [ltu.ORDERS[name](placed, np.random.default_rng(seed)) for seed in range(tries)]
    return {question and question.output for question in found}


@pytest.mark.parametrize(
    ("rule", "onsets", "answers"),
    [
        ("sequence", (0, 1, 2), {"Order: a; b; c"}),
        ("sequence", (0, 0.2, 2), {None}),  # a and b begin together
        ("sequence", (0,), {None}),
        ("first", (0, 1, 1), {"First: a"}),
        ("first", (0, 0.1, 1), {None}),
        ("first_over", (0, 1, 1), {"First: a"}),
        ("first_over", (0, 0.2), {None}),
        ("last", (0, 0, 1), {"Last: c"}),
        ("last", (0, 1, 1.2), {None}),
        ("first_of_two", (0, 0.1, 2), {"First: a", "First: b"}),
        ("first_of_two", (0, 0.1), {None}),
        ("next", (0, 1, 2), {"Next: b", "Next: c"}),
        ("next", (0, 1, 1.1), {None}),  # two sounds begin next
        ("next", (0, 0.1, 2), {"Next: c"}),  # after b
    ],
)
def test_rules_of_order(rule, onsets, answers):
    assert asked(rule, at(*onsets)) == answers


def test_a_sound_that_begins_first_and_ends_last():
    clip = replace(at(0, 1), events=(ClipEvent("a", 0, 9), ClipEvent("b", 1, 2)))
    assert asked("first_over", clip) == {None} and asked("first", clip) == {"First: a"}


def test_every_rule_is_drawn_and_names_stay_as_they_are():
    clips = [replace(at(0, 2, 4), path=Path(f"clips/{i}.wav")) for i in range(300)]
    kinds = Counter(row.output.split(":")[0] for row in rows_of("ltu_temporal", clips) if "order" in row.meta)
    assert set(kinds) == {"Order", "First", "Last", "Next"} and sum(kinds.values()) == 300
    odd = replace(at(0), events=(ClipEvent("{ONE} of {OTHER}", 0, 1),), labels=("{ONE} of {OTHER}",))
    assert any("{ONE} of {OTHER}" in row.instruction for row in rows_of("ltu_temporal", [odd]))


def test_sounds_that_begin_together_have_no_order():
    assert len(rows_of("ltu_temporal", [at(0, 0.1)])) == 2


def test_features_by_a_model():
    def ask(prompts, lacks, *, wants=1):
        assert wants == 10
        said = [[f"dull and {number}" for number in range(9)] + ["no (idea)"] for _ in prompts]
        assert prompts == [ltu_prompts.DESCRIBE.format(SOUND=label) for label in sorted(STREET.labels[2:])]
        assert [bool(lacks(0, each[:i])) for each in said for i in (9, 10)] == [False, True] * 2
        return said

    (row,) = rows_of("ltu_features", [STREET], ask=ask)
    pattern = r"; Dull and \d -> Accelerating, revving, vroom; Dull and \d -> Generic impact sounds$"
    assert re.search(pattern, row.output) and row.output.startswith("High-pitched and wailing -> Ambulance (siren); ")
    with pytest.raises(
        DataError, match=r"task ltu_features needs clips with labels, and events with features or a lang"
    ):
        rows_of("ltu_features", [at(0)])


def test_closed_ended_questions_say_so():
    clips = [replace(STREET, path=Path(f"clips/{i}.wav"), questions=(("Is it wet?", "no"),)) for i in range(400)]
    rows = rows_of("ltu_captioning", clips, TaskConfig(closed_ended=0.5))
    said = [row.instruction.startswith("Closed-ended question: ") for row in rows]
    assert 160 < sum(said) < 240  # 200 and four standard deviations
    assert [row.output for row in rows] == [row.output for row in rows_of("ltu_captioning", clips)]
    moved = [replace(clip, path=Path("elsewhere") / clip.path) for clip in clips]
    again = rows_of("ltu_captioning", moved, TaskConfig(closed_ended=0.5))
    assert [row.instruction for row in again] == [row.instruction for row in rows]
    assert not any("Closed" in row.instruction for row in rows_of("answering", clips, TaskConfig(closed_ended=1.0)))
    with pytest.raises(ConfigError, match="closed_ended is 50; expected a share, 0 to 1"):
        TaskConfig(closed_ended=50)
