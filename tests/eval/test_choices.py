"""Closed sets of answers, by a model whose likelihoods are known; intervals by their closed form."""

import math

import pytest

from alm_jax.data.rows import AudioRow
from alm_jax.eval.choices import Accuracy, accuracy, choose, usual, wilson


class Fond:
    """Stands in for a model: holds the longer of two answers likelier, but `wanted` above all."""

    def __init__(self, wanted=()):
        self.wanted, self.batches = set(wanted), []

    def likelihoods(self, questions, features, choices, *, input):
        self.batches.append([len(given) for given in choices])
        liking = lambda question, choice: (f"{question}:{choice}" in self.wanted, len(choice))
        return [
            {choice: 0.0 for choice in sorted(given, key=lambda choice: liking(question, choice), reverse=True)}
            for question, given in zip(questions, choices)
        ]


ROWS = [
    AudioRow("a", output="yes", task="one"),
    AudioRow("b", output="first", task="two"),
    AudioRow("c", output="no", task="one"),
]
CHOICES = [("yes", "no"), ("first", "second", "both"), ("yes", "no")]


def test_the_likeliest_choice_of_each_row_in_the_order_of_the_rows():
    model, told = Fond(["b:first"]), []
    chosen = choose(model, ROWS, [[], [1], []], CHOICES, batch_size=2, progress=lambda *at: told.append(at))
    assert chosen == ["yes", "first", "yes"]
    assert model.batches == [[2, 2], [3, 3]] and told == [(2, 3), (3, 3)]  # rows of one shape share a batch


def test_accuracy_and_chance():
    found = accuracy(ROWS, ["yes", "first", "yes"], CHOICES)
    assert (found.right, found.of) == (2, 3) and found.share == 2 / 3
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert math.isnan(accuracy([], [], []).share)
    with pytest.raises(ValueError):
        accuracy(ROWS, ["yes"], CHOICES)


def test_the_usual_answer():
    rows = [*ROWS, AudioRow("d", output="no", task="one")]
    assert usual(rows) == {None: "no"}
    assert usual(ROWS, lambda row: row.task) == {"one": "no", "two": "first"}  # of a tie the first in the alphabet


def test_wilson():
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, of), bounds in published.items():
        assert wilson(right, of) == pytest.approx(bounds, abs=1e-4)  # as printed
    assert wilson(0, 0) == (0.0, 1.0)
    assert Accuracy(20, 20, 0.5).interval == pytest.approx((1 - 0.1611, 1), abs=1e-4)
