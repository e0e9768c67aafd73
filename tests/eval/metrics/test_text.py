"""Texts and classes in a space whose cosines are known; an endpoint that embeds."""

import json

import numpy as np
import pytest

from alm_jax.core.errors import EndpointError, UsageError
from alm_jax.data.endpoint import Endpoint, embed
from alm_jax.eval.metrics import text
from alm_jax.eval.metrics.text import class_similarity, penalised, sentence_similarity, text_encoder
from tests.data.endpoints import serving


class Letters:
    """Embeds a text as how often it has a, b and c, and notes what it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, texts):
        self.given.append(list(texts))
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], float)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def test_similarity_of_classes():
    encode = Letters()
    found = class_similarity(["A b", "cc", "A b"], ["a", "C"], encode, prefix="x ")
    assert found == pytest.approx(np.array([[0.5**0.5, 0], [0, 1], [0.5**0.5, 0]]))
    assert encode.given == [["x a b", "x cc"], ["x a", "x c"]]  # equal answers once, all lower case


def test_similarity_of_sentences():
    """`ab` with `a` (0.71) and `c` (0); `c` with `c` (1)."""
    assert sentence_similarity(["ab", "c"], [["a", "c"], ["c"]], Letters()) == pytest.approx([0.5**0.5 / 2, 1])


def test_errors_of_fluency_cost_nine_tenths():
    assert penalised(np.array([0.5, 0.5, 0.8]), np.array([0.89, 0.91, 1.0])) == pytest.approx([0.5, 0.05, 0.08])


def vectors(*given):
    return json.dumps({"data": [{"index": i, "embedding": each} for i, each in reversed(list(enumerate(given)))]})


def test_an_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(text, "_AT_ONCE", 2)
    replies = [(503, "{}"), (200, vectors([3, 4], [0, 2])), (200, vectors([1, 0]))]
    with serving(lambda number, prompt: replies[number], prompt=lambda body: body["input"]) as server:
        monkeypatch.setattr(Endpoint, "pause", 0.01)
        encode = text_encoder(server.url, "ada")
        # The first request is answered by 503 and sent again.
        assert encode(["one", "two", ""]) == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0]]))
        assert server.prompts[1:] == [["one", "two"], [" ."]]
        assert server.body["path"] == "/v1/embeddings" and server.body["model"] == "ada"
        assert server.headers["Authorization"] == "Bearer secret"


def test_too_few_vectors():
    with serving(lambda number, prompt: (200, vectors([1.0])), prompt=lambda body: body["input"]) as server:
        with pytest.raises(EndpointError, match=r"not 2 vectors in data\[\].embedding"):
            embed(Endpoint(server.url, "ada", tries=1), ["a", "b"])


def test_a_model_of_no_endpoint():
    with pytest.raises(UsageError, match="is no endpoint"):
        text_encoder("bert-large-uncased", "ada")
