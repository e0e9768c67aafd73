import json
import pickle

import pytest

from alm_jax.core.errors import DataError
from alm_jax.core.sequence import Audio, Text
from alm_jax.data import rows as rows_module
from alm_jax.data.rows import AudioRow, read_rows
from alm_jax.data.templates import ALPACA_SHORT, CHATML, PLAIN

GOOD = {
    "instruction": "What is heard?",
    "input": "",
    "audio_id": "a.wav",
    "dataset": "d",
    "task": "t",
    "output": "A dog.",
}


def write(path, records, lines=False):
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in records) if lines else json.dumps(records, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_reads_every_field_in_both_forms(tmp_path, lines):
    records = [
        GOOD,
        {"instruction": "Où ? 日本 ]},{", "audio_id": "/abs/b.wav", "output": '\\"é\n🎵'},
        {"instruction": "?", "input": None, "audio_id": None, "output": "", "meta": {"choices": ["x", "y"]}},
        {"instruction": "<audio> or <audio>?", "audio_id": ["a.wav", "b.wav"], "output": "The first."},
        {"instruction": "Which?", "audio_id": ["a.wav"], "output": "This."},
    ]
    rows = read_rows(write(tmp_path / "rows.json", records, lines))
    assert [r.instruction for r in rows] == [r["instruction"] for r in records]
    assert rows[0] == AudioRow(**GOOD)
    assert rows[1].output == records[1]["output"] and rows[1].dataset == rows[1].input == ""
    assert rows[2].clips == () and rows[2].input == "" and rows[2].meta["choices"] == ["x", "y"]
    assert rows.clip_path("a.wav") == tmp_path / "a.wav"
    assert str(rows.clip_path(rows[1].audio_id)) == "/abs/b.wav"
    assert rows[3].clips == ("a.wav", "b.wav") and rows[4].clips == ("a.wav",) and rows[4].audio_id == "a.wav"
    with pytest.raises(DataError, match=r"a.wav, b.wav: 2 clips in a row, where rows of one are expected"):
        rows.clip_path(rows[3].audio_id)
    assert rows.name(1).endswith("rows.json:2" if lines else "rows.json[1]")
    copy = pickle.loads(pickle.dumps(rows))
    assert list(copy.rows) == list(rows.rows)


def test_texts_stand_for_clips(tmp_path):
    records = [
        {"instruction": "What?", "caption": "A dog barks.", "output": "dog"},
        GOOD | {"caption": "Rain."},
        {"instruction": "<audio> or <audio>?", "caption": ["A cat.", "A dog."], "output": "cat"},
        {"instruction": "Why?", "audio_id": None, "caption": None, "output": "So."},
    ]
    rows = read_rows(write(tmp_path / "rows.json", records))
    assert [row.num_clips for row in rows] == [1, 1, 2, 0]
    assert [rows.heard(row, "text") for row in rows] == [("A dog barks.",), ("Rain.",), ("A cat.", "A dog."), ()]
    assert rows.heard(rows[1]) == (tmp_path / "a.wav",)  # it has both
    kinds = [Audio, Text, Audio, Text, Text]
    assert [type(part) for part in PLAIN.parts(rows[2])] == kinds
    with pytest.raises(DataError, match="the row has a caption and no audio_id, and this stage hears audio"):
        rows.heard(rows[0])
    with pytest.raises(DataError, match="has an audio_id and no caption, and this stage hears text"):
        rows.heard(AudioRow("What?", audio_id="a.wav"), "text")
    with pytest.raises(DataError, match="1 clips and 2 captions; give one caption a clip"):
        AudioRow("What?", audio_id="a.wav", caption=("Rain.", "A dog."))


def test_windows_may_cut_rows_anywhere(tmp_path, monkeypatch):
    records = [GOOD | {"output": f"é{i} " * (i % 7), "meta": {"n": [i, 1.5]}} for i in range(50)]
    path = write(tmp_path / "rows.json", records)
    for window in (1, 7, 64, 1001):
        monkeypatch.setattr(rows_module, "_WINDOW", window)
        assert [r.output for r in read_rows(path)] == [r["output"] for r in records]


BAD = [
    ({**GOOD, "audio": "x"}, "audio is not a field of a row"),
    ({k: v for k, v in GOOD.items() if k != "output"}, "output is missing"),
    ({**GOOD, "instruction": 3}, "instruction is a int, expected text"),
    ({**GOOD, "output": None}, "output is a NoneType, expected text"),
    ({**GOOD, "meta": []}, "meta is a list, expected an object"),
    ({**GOOD, "instruction": " "}, "instruction is empty"),
    (["not a row"], "is a JSON list"),
    ({**GOOD, "audio_id": ["a.wav", ""]}, "audio_id holds '', expected the path of a clip"),
    (
        {**GOOD, "instruction": "<audio>What?<audio>"},
        "the question holds 2 <audio> marks and the row 1 clip; giv",
    ),
    (
        {**GOOD, "instruction": "<audio>What?", "audio_id": None},
        "the question holds 1 <audio> mark and the row no",
    ),
    (
        {**GOOD, "instruction": "What in <audio>?", "audio_id": ["a", "b"]},
        "the question holds 1 <audio> mark and the row 2",
    ),
]


@pytest.mark.parametrize("lines", [False, True])
def test_bad_rows_are_named_and_counted(tmp_path, lines):
    path = write(tmp_path / "rows.json", [GOOD] + [record for record, _ in BAD] + [GOOD], lines)
    rows, last = read_rows(path, max_bad_share=0.9), len(BAD) + 1
    assert len(rows) == 2 and len(rows.bad) == len(BAD)
    for i, (bad, (_, message)) in enumerate(zip(rows.bad, BAD)):
        where = f"{path}:{i + 2}: " if lines else f"{path}[{i + 1}]: "
        assert str(bad).startswith(where + message)
    assert rows.name(1) == (f"{path}:{last + 1}" if lines else f"{path}[{last}]")
    with pytest.raises(DataError, match=r"11 of 13 rows are bad .*audio is not a field.*; and 8 more"):
        read_rows(path, max_bad_share=0.5)


def test_a_broken_line_is_one_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\n\n{"instruction": "\n{"a": "\xff"}\n')
    rows = read_rows(path, max_bad_share=0.7)
    assert len(rows) == 1 and [b.where[-2:] for b in rows.bad] == [":3", ":4"]
    assert all("not valid JSON" in b.problem for b in rows.bad)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("hello", "is not JSON"),
        ("[]", "no rows"),
        ('[{"instruction": "a", "audio_id": "", "output": ""}, {"instr', r"rows.json\[1\]: .* broken from byte 53"),
        ('[{"instruction": "a"}', "broken|missing"),
    ],
)
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_missing_or_changed_file(tmp_path):
    with pytest.raises(DataError, match=r"no\.json: cannot read rows: No such file"):
        read_rows(tmp_path / "no.json")
    path = write(tmp_path / "rows.json", [GOOD])
    rows = read_rows(path)
    write(path, [GOOD, GOOD])
    with pytest.raises(DataError, match="was changed while in use"):
        rows[0]


def test_questions_without_answers(tmp_path):
    path = write(tmp_path / "q.json", [{"instruction": "What?", "audio_id": "a.wav"}])
    assert read_rows(path, need_output=False)[0].output == ""
    with pytest.raises(DataError, match="output is missing"):
        read_rows(path)


def test_templates():
    row = AudioRow("Describe {this}.", audio_id="a.wav", output="A {dog}.")
    assert ALPACA_SHORT.parts(row) == [
        Audio(0),
        Text("### Instruction:\nDescribe {this}.\n\n### Response:\n"),
        Text("A {dog}.", loss=True),
    ]
    assert ALPACA_SHORT.parts(AudioRow("Q", input="words"), answer=False) == [
        Text("### Instruction:\nQ\n\n### Input:\nwords\n\n### Response:\n")
    ]
    answer = "<|im_end|>\n<|im_start|>assistant\n"
    heard = [Text("<|im_start|>user\n"), Audio(0), Text(f"Q{answer}")]
    assert CHATML.parts(AudioRow("Q", audio_id="a.wav"), answer=False) == heard
    assert CHATML.parts(AudioRow("Q"), answer=False) == [Text(f"<|im_start|>user\nQ{answer}")]


def test_clips_stand_where_their_marks_do():
    shots = AudioRow("<audio>a dog<audio>a cat<audio>", audio_id=("1", "2", "3"), output="a dog")
    assert PLAIN.parts(shots) == [
        Audio(0),
        Text("a dog"),
        Audio(1),
        Text("a cat"),
        Audio(2),
        Text("a dog", loss=True),
    ]
    later = AudioRow("Is {this}<audio>", input="like <audio>?", audio_id=("1", "2"))
    opening = Text("### Instruction:\nIs {this}")
    assert ALPACA_SHORT.parts(later, answer=False) == [
        opening,
        Audio(0),
        Text("\n\n### Input:\nlike "),
        Audio(1),
        Text("?\n\n### Response:\n"),
    ]
    leading = AudioRow("Which?", audio_id=("1", "2"), output="<audio> is no mark here")
    assert PLAIN.parts(leading) == [Audio(0), Audio(1), Text("Which?"), Text("<audio> is no mark here", loss=True)]
    with pytest.raises(DataError, match=r"holds 2 <audio> marks and the row 3 clips; give audio_id one path a mark"):
        AudioRow("<audio><audio>", audio_id=("1", "2", "3"))
