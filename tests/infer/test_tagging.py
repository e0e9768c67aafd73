"""Scores of tags against the definition, written in NumPy over the Q-Former's outputs of each text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.errors import UsageError
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.infer.tagging import TagScorer
from alm_jax.models.aligners.qformer import QFormer, QFormerConfig
from alm_jax.models.features import AlignerText

SIZES = {"dim": 12, "out_dim": 10, "steps": 6, "queries": 3, "hidden": 16, "depth": 2, "heads": 2, "mlp_dim": 24}
CONFIG = QFormerConfig(**SIZES, vocab_size=301, positions=48)
WORDS = train_tokenizer(["a dog barks, rain falls on a tin roof"], 300)
CLASSES = ["Dog bark", "rain", "Vehicle horn, car horn, honking"]
TEXTS = ["a dog barks while rain falls", "", "rain", " ", "A vehicle; its horn. " * 9]


@pytest.fixture(scope="module")
def aligner():
    model = QFormer(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    arrays = {path: leaf + 0.3 * rng.normal(size=leaf.shape) for path, leaf in tree.flatten(model).items()}
    return tree.unflatten(model, {path: jnp.float32(leaf) for path, leaf in arrays.items()})


_outputs = jax.jit(lambda aligner, audio, said: aligner.outputs(audio, said, "unimodal"))


def words_of(aligner, text):
    """Vectors [words, hidden] of one text, next to a clip that is heard, which must make no difference."""
    ids = [WORDS.bos_id, *WORDS.encode(text)[:46], WORDS.eos_id]
    audio = np.random.default_rng(len(ids)).normal(size=(1, 6, 12)).astype(np.float32)
    said = AlignerText(jnp.array([ids]), jnp.ones((1, len(ids)), bool))
    return np.asarray(_outputs(aligner, audio, said)[1][0, 1:-1])


def test_scores_by_the_definition(aligner):
    classes = [words_of(aligner, name.lower()).mean(0) for name in CLASSES]
    expected = np.zeros((len(TEXTS), len(CLASSES)))
    for i, text in enumerate(TEXTS):
        for j, vector in enumerate(classes):
            if text.strip():
                words = words_of(aligner, text)
                cosines = words @ vector / (np.linalg.norm(words, axis=1) * np.linalg.norm(vector))
                expected[i, j] = 1 / (1 + np.exp(-cosines.max()))
    scorer = TagScorer(aligner, WORDS, CLASSES)
    scores = scorer(TEXTS)
    np.testing.assert_allclose(scores, expected, atol=1e-5)  # float32, sums in another order
    assert (scores[[1, 3]] == 0).all() and np.ptp(scores[[0, 2, 4]]) > 0.01
    np.testing.assert_allclose(scorer(TEXTS, batch_size=1), scores, atol=1e-5)
    assert scorer([]).shape == (0, 3)


def test_what_cannot_score(aligner):
    for classes in ([], ["dog", " "]):
        with pytest.raises(UsageError, match="a class has no name, or there is none"):
            TagScorer(aligner, WORDS, classes)
    silent = QFormer(QFormerConfig(**SIZES, reads_text=False), jax.random.key(0))
    with pytest.raises(UsageError, match="give a Q-Former with its text encoder"):
        TagScorer(silent, WORDS, CLASSES)
