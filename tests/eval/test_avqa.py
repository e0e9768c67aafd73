"""AVQA's questions: as published, and damaged ones."""

import json

import pytest

from alm_jax.core.errors import DataError
from alm_jax.eval.avqa import accuracy, read_questions

ENTRY = {
    "video_name": "-HG3Omg_89c_000030",
    "question_text": "What happened in the video?",
    "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
    "answer": 1,
}


def test_questions_and_accuracy(tmp_path):
    path = tmp_path / "val_qa.json"
    path.write_text(json.dumps([ENTRY, ENTRY | {"answer": 3}]))
    questions = read_questions(path)
    assert questions[0].prompt == (
        "Choose the correct option to the following question: What happened in the video? Options: 0 motorboat; "
        "1 Yacht consignment; 2 Sailboat set sail; 3 Consignment car. Answer:"
    )
    assert [accuracy(questions, chosen) for chosen in ([1, 3], [1, 0], [0, 0])] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as JSON"),
        ("{}", "a JSON dict, expected a list"),
        (json.dumps([ENTRY, {"answer": 1}]), "question 1: no 'video_name'"),
        (json.dumps([ENTRY | {"answer": 4}]), "question 0: 4 options and answer 4"),
        (json.dumps([ENTRY | {"multi_choice": ["a"]}]), "question 0: 1 options"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "val_qa.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(path)
