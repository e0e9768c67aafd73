"""Average precision of tags: cases worked by hand, its definition written out, and scikit-learn where it is there."""

import numpy as np
import pytest

from alm_jax.core.errors import UsageError
from alm_jax.eval.metrics.tags import average_precision, mean_average_precision

RNG = np.random.default_rng(0)
SCORES = np.round(RNG.random((40, 6)), 1)  # many are equal
TARGETS = RNG.random((40, 6)) < 0.3


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1.0),
        ([4, 3, 2, 1], [0, 0, 0, 1], 1 / 4),
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([1, 2, 3, 4], [1, 0, 1, 0], (1 / 2 + 2 / 4) / 2),
        ([5, 5, 5, 5], [1, 0, 0, 0], 1 / 4),  # a constant finds all at once
        ([2, 1, 1, 0], [0, 1, 0, 1], (2 / 4 + 1 / 3) / 2),
        ([2, 1], [0, 0], np.nan),
    ],
)
def test_worked_by_hand(scores, targets, expected):
    found = average_precision(np.array(scores)[:, None], np.array(targets)[:, None])
    np.testing.assert_allclose(found, [expected], rtol=1e-15)


def test_by_its_definition():
    """Of every clip with the tag: the share of tagged clips among those that score no lower."""
    expected = [
        np.mean([tagged[column >= own].mean() for own in column[tagged]]) for column, tagged in zip(SCORES.T, TARGETS.T)
    ]
    np.testing.assert_allclose(average_precision(SCORES, TARGETS), expected, rtol=1e-12)
    assert mean_average_precision(SCORES, TARGETS) == pytest.approx(np.mean(expected))


def test_as_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    assert mean_average_precision(SCORES, TARGETS) == pytest.approx(metrics.average_precision_score(TARGETS, SCORES))


def test_a_class_that_no_clip_has_does_not_count():
    empty = TARGETS & (np.arange(6) != 2)
    assert np.isnan(average_precision(SCORES, empty)[2])
    others = [0, 1, 3, 4, 5]
    assert mean_average_precision(SCORES, empty) == mean_average_precision(SCORES[:, others], TARGETS[:, others])


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (SCORES, TARGETS[:, :3], r"scores \(40, 6\) and targets \(40, 3\)"),
        (SCORES[:0], TARGETS[:0], "expected"),
        (np.full((2, 1), np.nan), np.ones((2, 1)), "not finite"),
        (SCORES, np.zeros_like(TARGETS), "no clip has any tag"),
    ],
)
def test_what_cannot_be_scored(scores, targets, message):
    with pytest.raises(UsageError, match=message):
        mean_average_precision(scores, targets)
