"""Retrieval and zero-shot scores against cases worked by hand."""

import numpy as np
import pytest

from alm_jax.core.errors import UsageError
from alm_jax.eval.retrieval import (
    audio_text_retrieval,
    class_embeddings,
    retrieve,
)


def test_ranks_by_hand():
    """Twelve items; the relevant ones of three queries stand at ranks 1, at 2 and 6, and at 11."""
    scores = np.tile(np.arange(12, 0, -1.0), (3, 1))
    relevant = np.zeros((3, 12), bool)
    relevant[0, 0] = relevant[1, 1] = relevant[1, 5] = relevant[2, 10] = True
    found = retrieve(scores, relevant)
    assert found.recall == pytest.approx({1: 1 / 3, 5: 2 / 3, 10: 2 / 3}) and found.queries == 3
    assert found.map10 == pytest.approx((1 + (1 / 2 + 2 / 6) / 2 + 0) / 3)


def test_more_relevant_than_ten():
    """All of twelve are relevant: the first ten are all that could be found there."""
    assert retrieve(np.arange(12.0)[None], np.ones((1, 12), bool)).map10 == 1


def test_a_constant_finds_nothing():
    found = retrieve(np.zeros((2, 20)), np.eye(2, 20, dtype=bool))
    assert found.recall == {1: 0, 5: 0, 10: 0} and found.map10 == 0


def test_both_ways_with_several_captions_a_clip():
    """Two clips; the first has three captions, of which the last is nearer to the other clip."""
    audio = np.eye(2)
    text = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]])
    found = audio_text_retrieval(audio, text, [0, 0, 0, 1])
    # Clip 0 ranks its captions 1, 2, 3; clip 1 ranks text 3 first. Text 2 ranks its clip second.
    assert found.audio_to_text.recall[1] == 1 and found.audio_to_text.map10 == 1
    assert found.text_to_audio.recall == {1: 0.75, 5: 1.0, 10: 1.0}
    assert found.text_to_audio.map10 == pytest.approx((1 + 1 + 1 / 2 + 1) / 4)
    wrong = audio_text_retrieval(audio, text, [1, 1, 1, 0])
    # Clip 0 has text 3, which it ranks last of four; clip 1 has the others at ranks 2, 3 and 4.
    assert wrong.audio_to_text.recall == {1: 0, 5: 1, 10: 1}
    assert wrong.audio_to_text.map10 == pytest.approx((1 / 4 + (1 / 2 + 2 / 3 + 3 / 4) / 3) / 2)


def test_what_cannot_be_scored():
    with pytest.raises(UsageError, match="query 1 has no relevant item"):
        retrieve(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
    with pytest.raises(UsageError, match=r"relevant of \(2, 3\): expected \[queries, items\]"):
        retrieve(np.zeros((2, 2)), np.ones((2, 3), bool))
    with pytest.raises(UsageError, match="clip_of names the clips of 1 texts, there are 2, of 2 clips"):
        audio_text_retrieval(np.eye(2), np.eye(2), [0])
    with pytest.raises(UsageError, match="query 1 has no relevant item"):
        audio_text_retrieval(np.eye(2), np.eye(2), [0, 0])


class Words:
    """Texts by their number of words and of letters."""

    def embed_text(self, texts):
        return np.array([[len(text.split()), len(text)] for text in texts], float)


def test_classes_are_means_over_prompts():
    found = class_embeddings(Words(), ["dog", "car horn"], ["{}", "a {}"])
    expected = np.array([[1.5, 4], [2.5, 9]])  # "dog", "a dog"; "car horn", "a car horn"
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    with pytest.raises(UsageError, match=r"prompts with \{\} in the label's place"):
        class_embeddings(Words(), ["dog"], ["a sound"])
