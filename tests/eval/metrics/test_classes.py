"""Classification scores against scikit-learn and cases worked by hand."""

import numpy as np
import pytest

from alm_jax.core.errors import UsageError
from alm_jax.eval.metrics.classes import accuracy, calibration, confusion, micro_f1, per_class, softmax

TRUTH, SAID = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2]


def test_by_hand():
    counts = confusion(TRUTH, SAID, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    scores = per_class(counts)
    assert scores["precision"] == pytest.approx([1 / 2, 1 / 2, 1, 0])
    assert scores["recall"] == pytest.approx([1 / 2, 1, 2 / 3, 0])
    assert scores["f1"] == pytest.approx([1 / 2, 2 / 3, 4 / 5, 0])
    assert accuracy(TRUTH, SAID) == pytest.approx(4 / 6)
    assert micro_f1([[1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 1]]) == pytest.approx(2 * 2 / (3 + 3))
    assert micro_f1(np.zeros((2, 3)), np.zeros((2, 3))) == 0.0


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="the reference of these scores: pip install scikit-learn")
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 5, (2, 60))
    assert accuracy(truth, said) == pytest.approx(metrics.accuracy_score(truth, said))
    # LTU scores DCASE 2017 by micro-F1 of one-hot rows, which is accuracy.
    assert accuracy(truth, said) == pytest.approx(metrics.f1_score(np.eye(5)[truth], np.eye(5)[said], average="micro"))
    counts = confusion(truth, said, 5)
    assert (counts == metrics.confusion_matrix(truth, said)).all()
    reference = metrics.precision_recall_fscore_support(truth, said, zero_division=0)
    for ours, theirs in zip(per_class(counts).values(), reference):
        assert ours == pytest.approx(theirs)
    many, guessed = rng.random((2, 40, 7)) > 0.7
    assert micro_f1(many, guessed) == pytest.approx(metrics.f1_score(many, guessed, average="micro"))


def test_calibration_by_hand():
    """Two bins: 0.35 and 0.4 of which none is right, 0.9 and 1.0 of which one is."""
    found = calibration([0.35, 0.4, 0.9, 1.0], [False, False, True, False], bins=2)
    assert found.confidence == pytest.approx((0.375, 0.95)) and found.accuracy == (0.0, 0.5)
    assert found.counts == (2, 2) and found.error == pytest.approx((0.375 + 0.45) / 2)
    assert calibration([0.0, 0.1, 1.0], [True] * 3, bins=10).counts == (2, 1)  # an upper edge belongs to its bin


def test_softmax():
    assert softmax([[0.0, np.log(3.0)], [1000.0, 1000.0]]) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))


def test_what_is_refused():
    with pytest.raises(UsageError, match="expected as many of both"):
        accuracy([0, 1], [0])
    with pytest.raises(UsageError, match="expected equal shapes"):
        micro_f1(np.ones((2, 2)), np.ones((2, 3)))
