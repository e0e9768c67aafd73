"""`alm ask`: one question, a chat, a file of rows; what goes where, and what is refused."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

import alm_jax
from alm_jax.audio.io import write_audio
from alm_jax.cli.ask import Ask, _sampling
from alm_jax.cli.main import main
from alm_jax.core.errors import ConfigError
from alm_jax.infer.loaded import LoadedModel
from alm_jax.infer.sampling import APT_SAMPLING, LTU_SAMPLING, Sampling

DRAWN = ["--max-new-tokens", "6", "--temperature", "1", "--seed", "4"]
DRAW = {"max_new_tokens": 6, "sampling": Sampling(temperature=1.0), "seed": 4}
QUESTION = "What is heard?"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of two sound files and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a.wav", "b.wav")):
        write_audio(folder / name, np.random.default_rng(seed).normal(size=8000) / 4, 16000)
    (folder / "bad.wav").write_bytes(b"RIFF, but no more")
    return folder


@pytest.fixture(scope="module")
def model(trained):
    return alm_jax.load(trained)


@pytest.fixture
def loaded(model, monkeypatch):
    """Commands take the model that is there, and do not read the run again."""
    monkeypatch.setattr("alm_jax.api.load", lambda *args, **kwargs: model)


def ask(*args) -> int:
    return main(["ask", *map(str, args)])


@pytest.fixture
def typed(monkeypatch):
    """Lines on a stdin that is no terminal."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_answer_alone_is_on_stdout(trained, model, clips, capsys):
    assert ask(trained, "--audio", clips / "a.wav", QUESTION, *DRAWN) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (model.generate(QUESTION, clips / "a.wav", **DRAW) + "\n", "")


def test_a_silent_clip_is_answered_and_named(loaded, trained, model, tmp_path, capsys):
    clip = tmp_path / "silent.wav"
    write_audio(clip, np.zeros(16000), 16000)
    assert ask(trained, "--audio", clip, *DRAWN, QUESTION) == 0
    out, err = capsys.readouterr()
    assert out == f"{model.generate(QUESTION, clip, **DRAW)}\n"
    assert err == f"alm: note: {clip}: silent, every sample is zero: give a clip with sound\n"
    assert logging.getLogger("alm_jax").handlers == []


def test_options_reach_the_answer(loaded, trained, model, monkeypatch, capsys):
    seen = []

    def answer(self, questions, features, **settings):
        assert not len(settings.pop("seen"))  # no images
        seen.append(settings)
        return ["Yes."]

    monkeypatch.setattr(LoadedModel, "answer", answer)
    own = {"max_new_tokens": 128, "sampling": Sampling(), "seed": 0, "input": "", "on_text": None}
    draw = ["--temperature", "0.5", "--top-k", "7", "--top-p", "0.25"]
    assert ask(trained, QUESTION) == 0
    assert ask(trained, QUESTION, *draw, "--seed", "5", "--input", "Hello.", "--max-new-tokens", "3") == 0
    assert ask(trained, QUESTION, "--repetition-penalty", "1.5") == 0
    assert capsys.readouterr() == ("Yes.\n" * 3, "")
    assert seen[0] == own
    assert seen[1] == own | {"max_new_tokens": 3, "sampling": Sampling(0.5, 7, 0.25), "seed": 5, "input": "Hello."}
    assert seen[2] == own | {"sampling": Sampling(repetition_penalty=1.5)}
    assert ask(trained, QUESTION, "--beams", "3", "--length-penalty", "2", "--no-repeat-ngram", "4") == 0
    assert seen[3] == own | {"sampling": Sampling(beams=3, length_penalty=2.0, no_repeat_ngram=4)}


def test_options_against_the_models_own():
    def chosen(own, *args):
        return _sampling(Ask("model", QUESTION, **dict(args)), own)

    assert chosen(LTU_SAMPLING, ("beams", 5)) == Sampling(beams=5, repetition_penalty=1.1)  # a search draws nothing
    assert chosen(APT_SAMPLING, ("temperature", 0.5)) == Sampling(0.5, repetition_penalty=1.5)  # a draw does not search
    assert chosen(APT_SAMPLING, ("beams", 1)) == Sampling(repetition_penalty=1.5)
    assert chosen(APT_SAMPLING, ("length_penalty", 2.0)) == replace(APT_SAMPLING, length_penalty=2.0)
    with pytest.raises(ConfigError, match="expected beams > 1"):
        chosen(Sampling(), ("length_penalty", 2.0))


def test_several_clips(loaded, trained, model, clips, capsys):
    a, b = clips / "a.wav", clips / "b.wav"
    marked = "Is <audio> louder than <audio>?"
    assert ask(trained, "--audio", a, "--audio", b, QUESTION, *DRAWN) == 0
    assert ask(trained, "--audio", b, "--audio", a, marked, *DRAWN) == 0
    assert capsys.readouterr() == (
        f"{model.generate(QUESTION, [a, b], **DRAW)}\n{model.generate(marked, [b, a], **DRAW)}\n",
        "",
    )


def test_examples(loaded, trained, model, clips, capsys):
    a, b = clips / "a.wav", clips / "b.wav"
    given = ["--example", a, "This is a dog", "--example", b, "This is rain"]
    assert ask(trained, *given, "--audio", b, "This is", *DRAWN) == 0
    expected = model.generate("This is", b, examples=[(a, "This is a dog"), (b, "This is rain")], **DRAW)
    assert capsys.readouterr() == (f"{expected}\n", "")


def test_choices_and_segments(loaded, trained, model, tmp_path, capsys):
    clip = tmp_path / "long.wav"  # windows are of 32 frames, 0.32 s
    write_audio(clip, np.random.default_rng(2).normal(size=12000) / 4, 16000)
    assert ask(trained, "--audio", clip, "--segments", "3", "--choices", "dog; It is 4.;rain", QUESTION) == 0
    ranked = model.rank(QUESTION, ["dog", "It is 4.", "rain"], clip, segments=3)
    assert capsys.readouterr() == (f"{next(iter(ranked))}\n", "")
    assert ask(trained, "--audio", clip, "--segments", "2", QUESTION) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"alm: error: {clip}: longer than 2 segments, which are 0.64 s") and err.count("\n") == 1


def test_the_best_checkpoint(trained, capsys):
    assert ask(trained, QUESTION, *DRAWN, "--which", "best") == 0
    best = alm_jax.load(trained, which="best")
    assert capsys.readouterr().out == best.generate(QUESTION, **DRAW) + "\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and notes each time that it is flushed."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def isatty(self):
        return True

    def flush(self):
        if self.getvalue() not in self.shown[-1:]:
            self.shown.append(self.getvalue())


def test_a_terminal_sees_the_answer_grow(loaded, trained, model, monkeypatch):
    for seed in range(4):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        assert ask(trained, QUESTION, "--temperature", "1", "--seed", seed, "--max-new-tokens", "12") == 0
        whole = model.generate(QUESTION, max_new_tokens=12, sampling=Sampling(temperature=1.0), seed=seed)
        assert terminal.getvalue().strip() == whole and terminal.getvalue().endswith("\n")
        assert len(terminal.shown) > 3
        assert all(terminal.getvalue().startswith(part) for part in terminal.shown)


def test_a_chat(loaded, trained, model, clips, typed, capsys):
    typed(QUESTION, "", f"/audio {clips / 'bad.wav'}", "/audio", "/sing", "Why?", f"/audio {clips / 'b.wav'}", "Why?")
    assert ask(trained, "--audio", clips / "a.wav", "--interactive", *DRAWN) == 0
    out, err = capsys.readouterr()
    expected = [(QUESTION, "a.wav"), ("Why?", "a.wav"), ("Why?", "b.wav")]
    assert out == "".join(f"{model.generate(question, clips / clip, **DRAW)}\n" for question, clip in expected)
    bad, empty, unknown = err.splitlines()
    assert bad.startswith("alm: error: ") and "bad.wav" in bad
    assert "/audio takes sound files" in empty and "no command /sing" in unknown

    typed("Why?", "/quit", "never asked")
    assert ask(trained, "--interactive", *DRAWN) == 0
    assert capsys.readouterr() == (model.generate("Why?", **DRAW) + "\n", "")


def test_a_chat_about_several_clips(loaded, trained, model, clips, typed, tmp_path, capsys):
    a, b, odd = clips / "a.wav", clips / "b.wav", tmp_path / "a b.wav"
    odd.symlink_to(b)
    typed("Why?", "Is <audio> or <audio>?", f"/audio {a} '{odd}'", "Is <audio> or <audio>?", f"/audio {odd}", "Why?")
    assert ask(trained, "--audio", a, "--example", b, "It is 2.", "--interactive", *DRAWN) == 0
    out, err = capsys.readouterr()
    asked = [("Why?", a), ("Is <audio> or <audio>?", [a, odd]), ("Why?", odd)]
    assert out == "".join(f"{model.generate(q, clip, examples=[(b, 'It is 2.')], **DRAW)}\n" for q, clip in asked)
    assert "holds 2 <audio> marks, and 1 clip is given" in err and err.count("\n") == 1


def test_a_chat_encodes_a_clip_once(loaded, trained, clips, typed, monkeypatch):
    encoded = []
    encode = LoadedModel.encode
    monkeypatch.setattr(LoadedModel, "encode", lambda self, audio, *args: encoded.append(audio) or encode(self, audio))
    typed("What?", "Why?", "When?")
    assert ask(trained, "--audio", clips / "a.wav", "--interactive", "--max-new-tokens", "1") == 0
    assert encoded == [(clips / "a.wav",)]


def test_interrupting_a_chat(loaded, trained, model, typed, monkeypatch, capsys):
    answer, asked = LoadedModel.answer, []

    def interrupted(self, questions, *args, **kwargs):
        asked.extend(questions)
        if questions == ["Stop."]:
            raise KeyboardInterrupt
        return answer(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "answer", interrupted)
    typed("Stop.", "Why?")
    assert ask(trained, "--interactive", *DRAWN) == 0
    assert asked == ["Stop.", "Why?"]
    assert capsys.readouterr().out == model.generate("Why?", **DRAW) + "\n"


@pytest.mark.parametrize("stdout_too", [False, True])
def test_the_prompt_of_a_terminal(loaded, trained, stdout_too, monkeypatch, capsys):
    """Where answers go into a file, the prompt is on stderr; else readline writes it, to edit and recall lines."""
    stdin, prompts, lines = Terminal(), [], iter(["Why?"])
    stdin.write("Why?\n")
    stdin.seek(0)
    monkeypatch.setattr("sys.stdin", stdin)

    def read(prompt):
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    if stdout_too:
        monkeypatch.setattr("sys.stdout", Terminal())
    assert ask(trained, "--interactive", *DRAWN) == 0
    out, err = capsys.readouterr()
    assert "/audio FILE ... takes other clips" in err
    assert prompts == (["> ", "> "] if stdout_too else [])
    assert err.count("> ") == (0 if stdout_too else 2)
    assert ">" not in out and out.count("\n") == (0 if stdout_too else 1)


@pytest.fixture
def rows(clips, tmp_path):
    """Rows about two clips, with and without input, one of no clip; named relative to their file."""
    table = [
        {"instruction": QUESTION, "audio_id": "a.wav", "output": "Noise."},
        {"instruction": "Why?", "audio_id": "a.wav", "input": "I am sad."},
        {"instruction": "What is one and one, if you add them in your head?", "audio_id": ""},
        {"instruction": "Is it a dog?", "audio_id": str(clips / "b.wav"), "meta": {"id": 7}},
        {"instruction": "Wer singt da, Käthe?", "audio_id": "b.wav", "task": "singing"},
    ]
    for name in ("a.wav", "b.wav", "bad.wav"):
        (tmp_path / name).symlink_to(clips / name)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
    return path


def batch(trained, rows, out, *options) -> int:
    return ask(trained, "--batch", rows, "--out", out, "--batch-size", "2", *DRAWN, *options)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_answers_as_single_questions_do(loaded, trained, model, rows, tmp_path, capsys):
    out = tmp_path / "new" / "answers.jsonl"
    assert batch(trained, rows, out) == 0
    assert capsys.readouterr() == (f"5 answers in {out}\n", "")
    for row, told in zip(map(json.loads, rows.read_text().splitlines()), read(out), strict=True):
        clip = rows.parent / row["audio_id"] if row["audio_id"] else None
        assert told.pop("prediction") == model.generate(row["instruction"], clip, input=row.get("input", ""), **DRAW)
        empty = {"input": "", "dataset": "", "task": "", "output": "", "caption": "", "meta": {}}
        assert told == empty | row

    before = out.read_bytes()
    assert batch(trained, rows, out, "--batch-size", "5") == 0  # another size of batch changes nothing
    assert out.read_bytes() == before
    assert ask(trained, "--batch", rows, "--out", tmp_path / "wide.jsonl", *DRAWN) == 0
    assert (tmp_path / "wide.jsonl").read_bytes() == before


def test_a_batch_of_several_clips_and_choices(loaded, trained, model, rows, tmp_path, capsys):
    table = [
        {"instruction": "Which?", "audio_id": ["a.wav", "b.wav"], "meta": {"choices": ["first", "second", "no"]}},
        {"instruction": "<audio>dog<audio>", "audio_id": ["b.wav", "a.wav"], "meta": {"choices": ["dog", "a cat"]}},
        {"instruction": "Why?", "audio_id": ["a.wav", "bad.wav"], "meta": {"choices": ["rain"]}},
        {"instruction": "What?", "audio_id": "b.wav", "meta": {"choices": "rain"}},
        {"instruction": "How?", "audio_id": ""},
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in table))
    clips = [[rows.parent / clip for clip in ids] for ids in (["a.wav", "b.wav"], ["b.wav", "a.wav"])]
    out, ranked = tmp_path / "answers.jsonl", tmp_path / "ranked.jsonl"
    assert batch(trained, rows, out) == 1
    told = read(out)
    for row, paths, found in zip(table[:2], clips, told):
        assert found["prediction"] == model.generate(row["instruction"], paths, **DRAW)
        assert found["audio_id"] == row["audio_id"]
    assert "bad.wav" in told[2]["error"] and all("prediction" in found for found in told[3:])

    options = ["--out", ranked, "--batch-size", "2"]
    for _ in range(2):
        assert ask(trained, "--batch", rows, *options, "--choices", "meta") == 1
        told = read(ranked)
        for row, paths, found in zip(table[:2], clips, told):
            expected = model.rank(row["instruction"], row["meta"]["choices"], paths)
            assert found["prediction"] == next(iter(expected)) and found["scores"] == pytest.approx(expected, abs=1e-5)
        assert "bad.wav" in told[2]["error"]
        assert told[3]["error"] == "the row's meta has choices 'rain': expected a list of answers"
        assert "meta has choices None" in told[4]["error"]
    capsys.readouterr()
    assert ask(trained, "--batch", rows, *options, "--choices", "yes;no") == 2
    assert "(different: choices)" in capsys.readouterr().err
    assert ask(trained, "--batch", rows, "--out", tmp_path / "same.jsonl", "--choices", "yes;no") == 1
    assert {found.get("prediction") for found in read(tmp_path / "same.jsonl")} <= {"yes", "no", None}


def test_a_stopped_batch_goes_on(loaded, trained, rows, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert batch(trained, rows, whole) == 0
    answer, calls = LoadedModel.answer, []

    def counted(self, questions, *args, **kwargs):
        calls.append(questions)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "answer", counted)
    capsys.readouterr()
    assert batch(trained, rows, out) == 130
    assert "out.jsonl keeps what was answered, and the same command goes on" in capsys.readouterr().err
    assert len(read(out)) == 2
    with out.open("ab") as file:
        file.write(b'{"instruction": "Is it a d')  # as a crash in the middle of a write leaves it
    assert batch(trained, rows, out) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert [len(questions) for questions in calls] == [2, 2, 2, 2]  # two answered, two interrupted, three answered


def test_rows_with_bad_clips(loaded, trained, clips, rows, tmp_path, capsys):
    table = read(rows)
    table[1]["audio_id"], table[4]["audio_id"] = "bad.wav", "missing.wav"
    rows.write_text("".join(json.dumps(row) + "\n" for row in table))
    out = tmp_path / "answers.jsonl"
    for _ in range(2):  # the second time all is there
        assert batch(trained, rows, out) == 1
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert stderr == f"alm: error: 2 of 5 rows have an error in place of an answer; see {out}\n"
    told = read(out)
    assert ["prediction" in row for row in told] == [True, False, True, True, False]
    assert "bad.wav" in told[1]["error"] and "missing.wav" in told[4]["error"]

    (rows.parent / "missing.wav").symlink_to(
        clips / "b.wav"
    )  # the same command tries the failed rows again, and only these
    before = out.read_bytes().splitlines()
    assert batch(trained, rows, out) == 1
    assert "1 of 5 rows have an error" in capsys.readouterr().err
    after = out.read_bytes().splitlines()
    assert after[:4] == before[:4] and "prediction" in json.loads(after[4])
    whole = tmp_path / "whole.jsonl"
    (rows.parent / "bad.wav").unlink()
    (rows.parent / "bad.wav").symlink_to(clips / "a.wav")
    assert batch(trained, rows, out) == batch(trained, rows, whole) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_other_answers_are_not_continued(loaded, trained, model, rows, tmp_path, capsys, monkeypatch):
    out = tmp_path / "answers.jsonl"
    assert batch(trained, rows, out) == 0
    before = out.read_bytes()

    def refused(message, *options, code=2, out=out):
        capsys.readouterr()
        assert batch(trained, rows, out, *options) == code
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    refused("(different: seed): give another --out, or remove it", "--seed", "5")
    refused("(different: max_new_tokens, sampling)", "--max-new-tokens", "7", "--top-k", "3")
    other = {path: leaf * (2 if path == "decoder.norm.scale" else 1) for path, leaf in model.arrays.items()}
    changed = LoadedModel(model.spec, other, model.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("alm_jax.api.load", lambda *args, **kwargs: changed)
        refused("(different: model)")
    rows.write_text(rows.read_text().replace("Why?", "When?"))
    refused("(different: rows)")
    assert out.read_bytes() == before

    (tmp_path / "other.txt").write_text("mine")
    refused("holds something, and other.txt.settings.json does not say what", out=tmp_path / "other.txt")
    assert (tmp_path / "other.txt").read_text() == "mine"
    refused("is a folder: give a file", out=tmp_path)
    refused("cannot be written ([Errno 17] File exists: ", code=1, out=rows / "answers.jsonl")
    rows.write_text(rows.read_text().replace("When?", "Why?"))
    out.write_bytes(before.replace(b'"prediction"', b'"reply"', 1))
    refused("answers.jsonl:1: is no answer", code=1)
    out.write_bytes(before + before.splitlines(keepends=True)[0])
    refused("answers.jsonl:6: is one more than there are rows (5)", code=1)


def test_bad_rows_are_named_before_a_model_is_loaded(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alm_jax.api.load", lambda *args, **kwargs: pytest.fail("loaded"))
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Why?", "audio_id": ""}\n{"instruction": " "}\n')
    assert batch(trained, tmp_path / "rows.jsonl", tmp_path / "out.jsonl") == 1
    assert "rows.jsonl:2: audio_id is missing" in capsys.readouterr().err
    assert batch(trained, tmp_path / "nothing.json", tmp_path / "out.jsonl") == 1
    assert "nothing.json: cannot read rows" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "give one of these: a question in quotes, --interactive, --batch ROWS"),
        (["Why?", "--interactive"], 2, "give one of these"),
        ([" "], 2, "the question is empty"),
        (["Why?", "--audio", "nothing.wav"], 1, "nothing.wav: No such file"),
        (["What", "is", "heard?"], 2, "unrecognized options: is, heard?"),
        (["--batch", "rows.json"], 2, "--batch ROWS and --out FILE, for its answers, go together"),
        (["Why?", "--out", "a.jsonl"], 2, "--batch ROWS and --out FILE"),
        (["--batch", "rows.json", "--out", "a.jsonl", "--audio", "a.wav"], 2, "--batch takes clips and input from"),
        (["--batch", "rows.json", "--out", "a.jsonl", "--batch-size", "0"], 2, "--batch-size 0: expected 1 or more"),
        (["Why?", "--max-new-tokens", "0"], 2, "--max-new-tokens 0: expected 1 or more"),
        (["Why?", "--segments", "0"], 2, "--segments 0: expected 1 or more"),
        (["Is <audio> here?"], 2, "holds 1 <audio> mark, and no clips are given"),
        (["<audio> or <audio>?", "--audio", "a.wav"], 2, "holds 2 <audio> marks, and 1 clip is given"),
        (["Why?", "--audio", "nothing.wav", "--audio", "b.wav"], 1, "nothing.wav: No such file"),
        (["Why?", "--example", "nothing.wav", "a dog"], 1, "nothing.wav: No such file"),
        (["Why?", "--example", "a.wav", " "], 2, "an example's text is ' '"),
        (["Why?", "--example", "a.wav"], 2, "--example"),
        (
            ["--batch", "rows.json", "--out", "a.jsonl", "--example", "a.wav", "b"],
            2,
            "leave --audio, --image, --example and",
        ),
        (["Why?", "--choices", "dog"], 2, "--choices 'dog': expected two answers or more, parted by ;"),
        (["Why?", "--choices", "meta"], 2, "--choices 'meta': expected two answers or more, parted by ;"),
        (["Why?", "--choices", "a;;b"], 2, "--choices 'a;;b': expected two answers or more"),
        (["Why?", "--choices", "a;b", "--beams", "3"], 2, "--choices compares given answers, and makes none"),
        (["Why?", "--beams", "0"], 2, "expected beams >= 1"),
        (["Why?", "--beams", "3", "--temperature", "1"], 2, "beam search draws nothing"),
        (["Why?", "--beams", "1", "--length-penalty", "2"], 2, "expected beams > 1"),
        (["Why?", "--seed", "-1"], 2, "--seed -1: expected 0 or more"),
        (["Why?", "--temperature", "-1"], 2, "expected temperature >= 0"),
        (["Why?", "--top-p", "0"], 2, "0 < top_p <= 1"),
        (["Why?", "--temprature", "1"], 2, "did you mean --temperature?"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(trained, monkeypatch, capsys, args, code, message):
    monkeypatch.setattr("alm_jax.api.load", lambda *args, **kwargs: pytest.fail("loaded"))
    assert ask(trained, *args) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("alm: error: ") and err.count("\n") == 1
    assert message in err


def test_mistakes_about_the_model(loaded, trained, tmp_path, capsys, monkeypatch):
    assert ask(trained, "Why?", "--top-k", "5") == 2
    assert "nothing is drawn at temperature 0: give --temperature" in capsys.readouterr().err
    monkeypatch.undo()
    for code, message, *args in [
        (1, "summs: no such run or checkpoint: did you mean 'sums'?", trained.parent / "summs"),
        (1, "no weights found", tmp_path),
        (2, "is a run, which has its own base and tokenizer", trained, "--base", "vicuna"),
    ]:
        assert ask(*args, "Why?") == code
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
