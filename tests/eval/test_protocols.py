"""Protocols on answers that are known: rows of each, and scores worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alm_jax.audio.io import load_audio, write_audio
from alm_jax.core.errors import DataError, UsageError
from alm_jax.data.endpoint import Endpoint
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import ClipEvent, LabelledClip
from alm_jax.eval.benchmarks import BENCHMARKS, find_benchmark
from alm_jax.eval.compose import RATE, one_after_another, shift_pitch
from alm_jax.eval.metrics import captions
from alm_jax.eval.metrics.answers import ToRate
from alm_jax.eval.protocols import captions as caption_protocols
from alm_jax.eval.protocols import rated as rated_protocol
from alm_jax.eval.protocols.base import Answer, Asking, Scoring
from alm_jax.eval.protocols.captions import Caption, OpenQuestions
from alm_jax.eval.protocols.classify import Classify, after_caption, after_colon
from alm_jax.eval.protocols.composed import Order, Pitch, Twice
from alm_jax.eval.protocols.events import Count, Detect
from alm_jax.eval.protocols.questions import Episodes, Options, Reasons, ShortAnswers
from alm_jax.eval.protocols.retrieve import Retrieve


def letters(texts):
    counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def clip(name, *labels, **known):
    return LabelledClip(Path(f"/clips/{name}.wav"), labels, **known)


def asking(prompt="What?", classes=(), folder=Path("."), **more):
    return Asking(prompt, classes, folder, **more)


def scoring(how="generate", classes=(), model=None, folder=Path(".")):
    return Scoring(how, classes, lambda: letters, model, folder)


def answered(task, clips, said, how="generate", classes=(), **more):
    rows = list(task.rows(clips, asking(classes=classes, **more)))
    assert len(rows) == len(said)
    return task.score([Answer(row, text) for row, text in zip(rows, said)], scoring(how, classes))


def test_parsing_of_answers():
    assert after_colon("Closed-ended: Labels: Dog bark") == "Dog bark" == after_colon("Dog bark")
    assert after_caption('"Audio caption: A dog: it barks"') == "A dog: it barks" and after_caption("A dog") == "A dog"
    spell = BENCHMARKS["dcase2017_task4"].task.spell
    assert spell("Air horn, truck horn") == "Air horn truck horn" and Classify().spell("dog_bark") == "dog bark"


def test_single_labels():
    classes = ("dog", "rain")
    clips = [clip("a", "dog"), clip("b", "rain"), clip("c", "rain"), clip("none")]
    found = answered(Classify(), clips, ["Labels: dog", "rain", "a dog"], classes=classes)
    assert found.confusion.tolist() == [[1, 0], [1, 1]] and found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.rows[0]["read"] == "dog" and found.rows[2] == found.rows[2] | {"best": "dog", "right": False}
    assert found.per_class["recall"] == {"dog": 1.0, "rain": 0.5}


def test_several_labels():
    """Of three clips the first has both sounds, of which one is said."""
    classes = ("dog", "rain")
    clips = [clip("a", "dog", "rain"), clip("b", "rain"), clip("c", "dog")]
    found = answered(Classify(many=True, read=after_caption), clips, ["dog", "rain", "dog; rain"], classes=classes)
    # Said dog: 1, 0, 1 and rain: 0, 1, 1; true dog: 1, 0, 1 and rain: 1, 1, 0.
    assert found.metrics["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert found.per_class["average precision"]["dog"] == 1.0
    assert found.metrics["map"] == pytest.approx(np.mean(list(found.per_class["average precision"].values())))


def test_classes_ranked():
    classes = ("dog", "rain")
    task = Classify()
    rows = list(task.rows([clip("a", "dog"), clip("b", "rain")], asking(classes=classes)))
    assert task.choices(asking(classes=classes)) == classes
    answers = [Answer(rows[0], failed=True), Answer(rows[0], "dog", {"dog": 0.0, "rain": math.log(1 / 3)})]
    found = task.score(answers, scoring("choices", classes))
    assert found.metrics["accuracy"] == 0.5 and found.calibration.confidence == pytest.approx((0.75,))
    assert found.confusion.sum() == 1 and [row["right"] for row in found.rows] == [False, True]
    many = Classify(many=True)
    rows = list(many.rows([clip("a", "dog"), clip("b", "dog")], asking(classes=classes)))
    found = many.score([Answer(rows[0], "dog"), Answer(rows[1], failed=True)], scoring(classes=classes))
    assert found.metrics["top1_in_labels"] == 0.5 and found.metrics["map"] == 1.0  # both have it, in either order


class Space:
    """Stands in for a CLAP: a clip's name is its text."""

    @staticmethod
    def embed_text(texts):
        return letters([text.removeprefix("This is a sound of ").rstrip(".") for text in texts])


def test_embeddings():
    task, classes = Classify(), ("dog", "rain")
    rows = list(task.rows([clip("a", "dog"), clip("b", "rain"), clip("c", "rain")], asking()))
    answers = [Answer(row, vector=vector) for row, vector in zip(rows, letters(["dog", "god"]))]
    answers.append(Answer(rows[2], failed=True))
    assert task.score(answers, scoring("embed", classes, Space)).metrics["accuracy"] == pytest.approx(1 / 3)
    task = Retrieve()
    clips = [clip("a", captions=("dog", "a dog")), clip("b", captions=("rain",)), clip("c")]
    rows = list(task.rows(clips, asking()))
    answers = [Answer(row, vector=vector) for row, vector in zip(rows, letters(["dog", "rain"]))]
    found = task.score(answers, scoring("embed", model=Space))
    assert found.metrics["text_to_audio_r1"] == found.metrics["audio_to_text_r1"] == 1.0
    with pytest.raises(DataError, match="no clip could be heard"):
        task.score([Answer(rows[0], failed=True)], scoring("embed", model=Space))


def test_captions(monkeypatch):
    given = []

    def scored(said, references, spice):
        given.append((said, references))
        return captions.CaptionScores({"cider_d": 1.0}, {"cider_d": np.ones(len(said))}, ("no java",))

    monkeypatch.setattr(caption_protocols, "score_captions", scored)
    found = answered(Caption(), [clip("a", captions=("ab", "b")), clip("b")], ["Audio caption: ab"])
    assert given == [(["ab"], [["ab", "b"]])]
    assert list(found.metrics) == ["cider_d", "sentence_similarity"] and found.notes == ("no java",)
    assert found.rows[0]["sentence_similarity"] == pytest.approx((1 + 0.5**0.5) / 2)
    with pytest.raises(UsageError, match="--judge URL"):
        OpenQuestions(judged=True).check(scoring())


def test_short_answers_of_three_people():
    questions = [("Wet?", "yes"), ("Wet?", "yes"), ("Wet?", "no"), *[("Dry?", "no")] * 3]
    questions += [("What?", "dog"), ("What?", "a cat"), ("What?", "bird")]
    said = ["Yes.", "yes", "It is a cat"]
    found = answered(ShortAnswers(), [clip("a", questions=tuple(questions))], said, prompt="{QUESTION}")
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)  # whatever any of three who differ says
    assert found.metrics["binary_accuracy"] == 0.5 and found.metrics["word_accuracy"] == 1.0
    assert found.metrics["unanimous_accuracy"] == found.metrics["unanimous_binary_accuracy"] == 0.0


def test_options():
    task = find_benchmark("air_bench").task
    one = clip("a", questions=(("What?", "rain"),))
    other = clip("b", questions=(("Who?", "a dog"), ("How?", "loud")))
    about = {
        one.path: {"choices": ["dog", "rain"], "task": "sound"},
        other.path: {"asked": [{"choices": ["a dog", "a cat"], "type": "Who"}, {"choices": ["loud", "low", "no"]}]},
    }
    rows = list(task.rows([one, other, clip("c")], asking("{QUESTION}", about=about)))
    assert rows[0].instruction.endswith("\nWhat?\nA. dog\nB. rain") and [row.output for row in rows][1:] == [
        "a dog",
        "loud",
    ]
    found = task.score([Answer(row, said) for row, said in zip(rows, ["B", "B. a cat", "hm"])], scoring())
    assert found.metrics["accuracy"] == pytest.approx(1 / 3) and found.metrics["no_option"] == pytest.approx(1 / 3)
    assert found.metrics["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert found.per_class["accuracy"] == {"Who": 0.0, "sound": 1.0}
    sure = Answer(rows[0], "rain", {"rain": math.log(0.6), "dog": math.log(0.2)})
    found = task.score([sure], scoring("choices"))
    assert found.metrics["accuracy"] == 1.0 and found.calibration.confidence == pytest.approx((0.75,))
    with pytest.raises(DataError, match="its meta has no choices"):
        task.score([Answer(next(Classify().rows([clip("a", "x")], asking())), "x")], scoring())
    assert isinstance(find_benchmark("mmau").task, Options)


def test_episodes():
    clips = [clip(f"{label}{i}", label) for label in ("dog", "rain", "wind") for i in range(3)]
    task = Episodes()
    rows = list(task.rows(clips, asking(options={"ways": 3, "shots": 2, "episodes": 4})))
    assert len(rows) == 4 and all(len(row.clips) == 7 for row in rows)
    said = [rows[0].output, rows[1].output, rows[2].output, "thunder"]
    found = task.score([Answer(row, text) for row, text in zip(rows, said)], scoring("generate"))
    # Of four, s = 1 / 2: the interval is 1.96 / 2 / sqrt(4).
    assert found.metrics == pytest.approx({"accuracy": 0.75, "interval": 0.49, "chance": 1 / 3})


def events(*spans):
    return tuple(ClipEvent(label, onset, offset) for label, onset, offset in spans)


def test_detection():
    heard = clip("a", "dog", events=events(("dog", 1.0, 2.0), ("rain", 0.0, 8.0)), seconds=8.0)
    rows = list(Detect().rows([heard, clip("b")], asking("When is {LABEL}?")))
    assert [row.instruction for row in rows] == ["When is dog?", "When is rain?"]
    found = Detect().score([Answer(row, said) for row, said in zip(rows, ["1.0s-2.1s.", "4.0s-99.0s"])], scoring())
    assert found.metrics["event_f1"] == 0.5 and found.per_class["event F1"] == {"dog": 1.0, "rain": 0.0}
    # Segments of dog: 1 is true, 1 and 2 are said; of rain 8 and 4.
    assert found.metrics["segment_f1"] == pytest.approx(2 * (1 + 4) / (1 + 2 + 8 + 4))
    (row,) = Detect().rows([heard], asking("All?"))
    assert row.output == "dog: [1.0s-2.0s]; rain: [0.0s-8.0s]"
    whole = Detect().score([Answer(row, row.output)], scoring(classes=("dog", "rain")))
    assert whole.metrics["event_f1"] == whole.metrics["segment_f1"] == 1.0


def test_counting():
    heard = clip("a", events=events(("dog", 1.0, 2.0), ("dog", 3.0, 4.0), ("cat", 0.0, 1.0)), seconds=8.0)
    rows = list(Count().rows([heard], asking("How many {LABEL}?")))
    found = Count().score([Answer(row, said) for row, said in zip(rows, ["twice", "no idea"])], scoring())
    assert [row.output for row in rows] == ["2", "1"]
    assert found.metrics["exact"] == 1.0 and found.metrics["with_a_number"] == 0.5


def test_reasoning():
    clips = [clip(name, events=events((name, 0.0, 2.0)), seconds=8.0) for name in ("dog", "rain", "wind")]
    rows = list(Reasons().rows(clips, asking(options={"pairs": 2, "questions": 3})))
    found = Reasons().score([Answer(row, row.output) for row in rows], scoring())
    declined = Reasons().score([Answer(row, "That is unknown") for row in rows], scoring())
    assert found.metrics["accuracy"] == 1.0 == declined.per_class["accuracy"].get("unanswerable", 1.0)
    assert declined.metrics["accuracy"] == pytest.approx(np.mean([row.output == "unknown" for row in rows]))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Two clips of each of three labels: half a second of a tone between silence."""
    folder = tmp_path_factory.mktemp("tones")
    clips = []
    for i, label in enumerate(("siren", "horn", "bell")):
        for j in range(2):
            path = folder / f"{label}{j}.wav"
            time = np.arange(RATE // 2) / RATE
            tone = 0.5 * np.sin(2 * np.pi * (300 + 200 * i) * time)
            write_audio(path, np.pad(tone, RATE // 4), RATE)
            clips.append(LabelledClip(path, (label,)))
    return clips


def loudest(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


def test_composed_clips(tones):
    both = one_after_another([tones[0].path, tones[2].path], 4.75)
    assert len(both) == pytest.approx(1.5 * RATE, abs=20)  # without the silence around each, with a pause between
    assert loudest(both[: RATE // 2]) == pytest.approx(300, abs=4) and loudest(both[RATE:]) == pytest.approx(500, abs=4)
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    for semitones in (-12, -4, 4, 12):
        shifted = shift_pitch(tone, semitones)
        assert len(shifted) == RATE
        assert loudest(shifted) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)
        middle = shifted[RATE // 4 : RATE // 2]
        assert np.sqrt(np.mean(middle**2)) == pytest.approx(np.sqrt(0.5), rel=0.2)  # bins fall out of phase: 2 dB
    assert np.array_equal(shift_pitch(tone, 0), tone.astype(np.float32))


def test_order(tones, tmp_path):
    rows = list(Order().rows(tones, asking(folder=tmp_path, options={"pairs": 3})))
    assert len(rows) == 3 and all(Path(row.audio_id).is_file() and row.output in row.meta["choices"] for row in rows)
    assert all(row.meta["choices"] == sorted(row.meta["choices"]) for row in rows)
    sounds = [load_audio(row.audio_id)[0] for row in rows]
    other = list(Order().rows(tones, asking(folder=tmp_path, options={"pairs": 3}, seed=1)))
    assert other != rows  # and its clips take the place of those of the first seed, whose names they bear
    again = list(Order().rows(tones, asking(folder=tmp_path, options={"pairs": 3})))
    assert again == rows and all(np.array_equal(load_audio(r.audio_id)[0], s) for r, s in zip(rows, sounds))
    first, second = rows[0].output, next(c for c in rows[0].meta["choices"] if c != rows[0].output)
    said = [
        f"the {first}, then the {second}",
        f"the {next(c for c in rows[1].meta['choices'] if c != rows[1].output)}",
        "",
    ]
    found = Order().score([Answer(row, text) for row, text in zip(rows, said)], scoring())
    assert found.metrics["accuracy"] == 0.5 and found.metrics["followed"] == pytest.approx(2 / 3)


def test_one_or_two(tones, tmp_path):
    rows = list(Twice().rows(tones, asking("How many {LABEL}?", folder=tmp_path, options={"pairs": 1})))
    assert [row.output for row in rows] == ["1", "2"] * 3 and rows[0].instruction == "How many bell?"
    lengths = [len(load_audio(Path(row.audio_id))[0]) for row in rows[:2]]
    assert lengths[0] == pytest.approx(RATE / 2, abs=20) and lengths[1] == pytest.approx(1.5 * RATE, abs=40)
    found = Twice().score([Answer(row, row.output) for row in rows], scoring())
    assert found.metrics["pearson"] == pytest.approx(1) and found.metrics["ratio"] == 2.0


def test_pitch(tones, tmp_path):
    moved = tmp_path / "elsewhere" / tones[0].path.name  # another clip of the same name
    moved.parent.mkdir()
    moved.write_bytes(tones[1].path.read_bytes())
    twice = [tones[0], LabelledClip(moved, ("siren",))]
    assert len({row.audio_id for row in Pitch().rows(twice, asking(folder=tmp_path, options={"clips": 2}))}) == 10
    rows = list(Pitch().rows(tones, asking(folder=tmp_path, options={"clips": 1})))
    assert [row.meta["semitones"] for row in rows] == [-12, -8, -4, 0, 4]
    said = ["low", "low", "It is low-pitched", "high", "high"]
    found = Pitch().score([Answer(row, text) for row, text in zip(rows, said)], scoring())
    assert found.metrics["followed"] == 1.0
    assert found.metrics["pearson"] == pytest.approx(np.corrcoef([-12, -8, -4, 0, 4], [-1, -1, -1, 1, 1])[0, 1])
    assert found.per_class["high"]["+00 semitones"] == 1.0 and found.per_class["low"]["-12 semitones"] == 1.0
    with pytest.raises(DataError, match="needs two or more"):
        list(Order().rows(tones[:2], asking(folder=tmp_path, options={"pairs": 1})))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.task.hows and benchmark.about and benchmark.prompts
    assert set(benchmark.options) <= set(benchmark.task.options)


def test_chat(tmp_path, monkeypatch):
    """Four answers: one wins, one loses, the judge says nothing of one, and one clip could not be heard."""
    task = find_benchmark("air_bench_chat").task
    with pytest.raises(UsageError, match="--judge URL"):
        task.check(scoring())
    tasks = ("sound_QA", "music_QA", "sound_generation_QA", "music_QA")
    clips = [clip(str(i), questions=((f"Q{i}?", f"true {i}"),)) for i in range(4)]
    about = {each.path: {"about": f"Clip {i}", "task": name} for i, (each, name) in enumerate(zip(clips, tasks))}
    rows = list(task.rows([*clips, clip("none", questions=(("Q?", "A"),))], asking("{QUESTION}", about=about)))
    assert [row.instruction for row in rows] == ["Q0?", "Q1?", "Q2?", "Q3?"]
    given = []

    def rate(items, judge, journal, progress):
        given.extend(items)
        return [(6.0, 8.0), (9.0, 3.0), None]

    monkeypatch.setattr(rated_protocol, "rated", rate)
    answers = [*(Answer(row, f"said {i}") for i, row in enumerate(rows[:3])), Answer(rows[3], failed=True)]
    found = task.score(answers, replace(scoring(folder=tmp_path), judge=Endpoint("http://x", "m")))
    assert given[0] == ToRate("Clip 0", "Q0?", "true 0", "said 0") and len(given) == 3
    assert found.metrics == pytest.approx({"score": 4.0, "reference_score": 7.5, "win_rate": 1 / 3, "rated": 0.75})
    assert found.per_class == {"score": {"music": 2.0, "sound": 8.0}, "win rate": {"music": 0.0, "sound": 1.0}}
    assert found.rows[2] == {} and found.rows[3]["won"] is False
    monkeypatch.setattr(rated_protocol, "rated", lambda *given: [None] * 3)
    with pytest.raises(DataError, match="gave no two scores"):
        task.score(answers, replace(scoring(folder=tmp_path), judge=Endpoint("http://x", "m")))


def test_following_and_refusing(tmp_path, monkeypatch):
    """Questions of `open_ended` say whether they can be answered; what could not be asked is not judged, and wrong."""
    task = OpenQuestions(judged=True)
    row = lambda question, **meta: AudioRow(question, audio_id="a.wav", meta=meta, output="x")
    answers = [
        Answer(row("Who?", answerable=False), "It cannot be determined."),
        Answer(row("Where?", answerable=False), "In a hall."),
        Answer(row("What?", answerable=True), "A bell."),
        Answer(row("How?", answerable=True), failed=True),
    ]
    monkeypatch.setattr(caption_protocols, "followed", lambda questions, *given: [q != "Where?" for q in questions])
    found = task.score(answers, replace(scoring(folder=tmp_path), judge=Endpoint("http://x", "m")))
    assert found.metrics == {"followed": 0.5, "refused_unanswerable": 0.5, "refused_answerable": 0.0}
    assert [told["followed"] for told in found.rows] == [True, False, True, False]
