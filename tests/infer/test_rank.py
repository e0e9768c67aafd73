"""Ranking of candidates: through the cache against whole rows, padded against alone."""

import jax
import numpy as np
import pytest

from alm_jax.core.errors import UsageError
from alm_jax.core.sequence import Row, collate
from alm_jax.infer.rank import rank
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu

VOCAB = 50
CONFIG = ltu(
    LlamaConfig(VOCAB, dim=16, depth=2, heads=2, kv_heads=1, mlp_dim=24),
    CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2),
)
CANDIDATES = [[[5], [6, 7, 8], [9, 3], [4, 4]], [[11, 12], [13]], [[5, 6, 7, 8, 9, 10, 11, 12, 13], [5], [6]]]


@pytest.fixture(scope="module")
def model():
    return jax.tree.map(
        lambda x: 6 * x if x.ndim == 2 and x.shape[-1] == VOCAB else x, build(CONFIG, jax.random.key(0))
    )


def _row(ids, clips=(0,), audio=2):
    index = np.array([*range(audio), *[-1] * len(ids)])
    nothing = np.zeros(len(index))
    return Row(np.array([0] * audio + list(ids)), index, np.full(len(index), -1), nothing, nothing, nothing, clips)


PROMPTS = [_row([3, 4, 5]), _row([7, 8, 9, 10, 11, 12]), _row([20, 21], (), 0)]


@pytest.fixture(scope="module")
def waves():
    return np.random.default_rng(0).normal(size=(3, 1, 64, 32)).astype(np.float32)


def _prompts(rows, waves):
    batch = collate(rows, max(map(len, rows)), slots=1, pad="left")
    batch.audio = waves
    return batch


_logits = jax.jit(lambda model, batch: model.logits(model.hidden(batch)))


def _whole(model, prompt, ids, wave):
    """Log-likelihood of `ids` after a prompt, by a forward pass over the whole row."""
    tokens = np.append(prompt.tokens, ids)
    index = np.append(prompt.audio_index, [-1] * len(ids))
    nothing = np.zeros(len(tokens))
    row = Row(tokens, index, np.full(len(tokens), -1), nothing, nothing, nothing, prompt.clips)
    batch = collate([row], 20, slots=1)  # rows of one length are one program
    batch.audio = wave[None]
    logs = np.asarray(jax.nn.log_softmax(_logits(model, batch)), np.float64)[0]
    places = np.arange(len(prompt) - 1, len(tokens) - 1)
    return logs[places, ids].sum()


@pytest.mark.parametrize("at_once", [16, 2])
def test_equals_whole_rows(model, waves, at_once):
    """float32 sums in another order."""
    found = rank(model, _prompts(PROMPTS, waves), CANDIDATES, at_once=at_once)
    for row, (prompt, given) in enumerate(zip(PROMPTS, CANDIDATES)):
        expected = [_whole(model, prompt, ids, waves[row]) for ids in given]
        np.testing.assert_allclose(found.total[row, : len(given)], expected, atol=2e-5)
        np.testing.assert_allclose(
            found.mean[row, : len(given)], [e / len(ids) for e, ids in zip(expected, given)], atol=2e-5
        )
        assert np.isneginf(found.total[row, len(given) :]).all()
        assert found.best()[row] == np.argmax([e / len(ids) for e, ids in zip(expected, given)])


def test_padded_and_alone(model, waves):
    together = rank(model, _prompts(PROMPTS, waves), CANDIDATES)
    for row, given in enumerate(CANDIDATES):
        alone = rank(model, _prompts([PROMPTS[row]], waves[row : row + 1]), [given])
        np.testing.assert_allclose(together.total[row, : len(given)], alone.total[0], atol=2e-5)


@pytest.mark.parametrize("candidates", [[[[3], []]], [[]]])
def test_nothing_to_rank(model, waves, candidates):
    with pytest.raises(UsageError, match="row 0 has a candidate without tokens, or no candidates"):
        rank(model, _prompts(PROMPTS[:1], waves[:1]), candidates)
