"""The Q-Former's masks and groups of blocks, and the losses of APT's alignment stage.

Values against the official code are compared by `tools/check_golden.py`, against `transformers` in
`tests/convert/test_systems.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.models import apt
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormer, QFormerConfig
from alm_jax.models.features import AlignerText, Features
from tests.modules import randomised

SIZES = {"dim": 12, "out_dim": 10, "steps": 6, "queries": 3, "hidden": 16, "heads": 2, "mlp_dim": 24}
CONFIG = QFormerConfig(
    **SIZES, depth=2, cross_every=1, vocab_size=20, positions=8, pretraining=PretrainingConfig(dim=8)
)
TEXT = AlignerText(jnp.array([[5, 7, 8, 6], [5, 9, 6, 0]]), jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]]) == 1)
QUERIES, WORDS = 3, 4


def make(config=CONFIG):
    """Weights large enough that nothing is lost in rounding."""
    return randomised(lambda key: QFormer(config, key), 0.3)


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def audio():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 12)), jnp.float32)


def reach(model, audio, mask):
    """bool [outputs, inputs] of row 1: which of queries, words and (last) the clip reach which queries and words."""

    def run(inputs, audio):
        x = inputs[:, :QUERIES], inputs[:, QUERIES:]
        return jnp.concatenate(model.run(x, audio, model.mask(TEXT, mask)), axis=1)[1]

    inputs = jnp.concatenate(model.embeddings(audio, TEXT), axis=1)
    by_input, by_audio = jax.jit(jax.jacobian(run, (0, 1)))(inputs, audio)
    by_input = np.abs(by_input[:, :, 1]).max((1, 3)) > 0
    return np.concatenate([by_input, (np.abs(by_audio[:, :, 1]).max((1, 2, 3)) > 0)[:, None]], axis=1)


def expected_reach(mask):
    """Row 1 has three words and one pad."""
    seen = np.zeros((QUERIES + WORDS, QUERIES + WORDS + 1), bool)
    seen[:QUERIES, :QUERIES] = seen[:QUERIES, -1] = True  # queries reach queries, and hear the clip
    words = slice(QUERIES, QUERIES + 3)
    if mask == "unimodal":
        seen[QUERIES:, words] = True
    elif mask == "bidirectional":
        seen[:, :QUERIES] = seen[:, words] = seen[:, -1] = True
    else:
        seen[QUERIES:, :QUERIES] = seen[QUERIES:, -1] = True
        seen[QUERIES:, words] = np.tril(np.ones((WORDS, 3), bool))
    seen[-1, -2] = True  # a pad still has its own residual stream
    return seen


@pytest.mark.parametrize("mask", ["unimodal", "bidirectional", "causal"])
def test_nothing_leaks_through_a_mask(model, audio, mask):
    """A gradient flows exactly where the mask lets it: no tolerance, a masked weight is exactly zero."""
    np.testing.assert_array_equal(reach(model, audio, mask), expected_reach(mask))


def test_padding_changes_nothing(model, audio):
    """float32 rounding of the same sums."""
    longer = AlignerText(
        jnp.pad(TEXT.tokens, ((0, 0), (0, 3)), constant_values=4), jnp.pad(TEXT.mask, ((0, 0), (0, 3)))
    )
    run = jax.jit(lambda text: model(Features(audio[None]), text)[0])
    np.testing.assert_allclose(run(TEXT), run(longer), atol=1e-5)
    nothing = AlignerText(jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 4), bool))
    np.testing.assert_allclose(run(None), run(nothing), atol=1e-5)
    assert np.abs(run(None) - run(TEXT)).max() > 1e-2  # the text matters


@jax.jit
def run_block(block, x, cross, audio, mask):
    return block(*x, cross, audio, mask)


@pytest.mark.parametrize("depth, every", [(5, 2), (3, 1), (2, 3), (6, 3)])
def test_any_pattern_of_cross_attention(audio, depth, every):
    """Scanned groups, the last one shorter, against one block after another."""
    config = QFormerConfig(**SIZES, depth=depth, cross_every=every, vocab_size=20, positions=8)
    model = make(config)
    x, mask = model.embeddings(audio, TEXT), model.mask(TEXT, "bidirectional")
    for i in range(depth):
        block = jax.tree.map(lambda leaf: leaf[i], model.blocks)  # noqa: B023
        cross = None if i % every else jax.tree.map(lambda leaf: leaf[i // every], model.cross)  # noqa: B023
        x = run_block(block, x, cross, audio, mask)
    for ours, one_by_one in zip(jax.jit(QFormer.outputs)(model, audio, TEXT), x):
        np.testing.assert_allclose(ours, one_by_one, atol=1e-5)  # the same float32 sums, fused differently


def test_remat_and_dropout(model, audio):
    """Rematerialised gradients are the same; a key makes outputs random, and the same key the same."""
    features = Features(audio[None])
    again = make(QFormerConfig(**vars(CONFIG) | {"remat": "full"}))
    run = jax.jit(jax.value_and_grad(lambda model, key: model(features, TEXT, key)[0].sum()))
    loss, plain = run(model, jax.random.key(3))
    plain, saved = tree.flatten(plain), tree.flatten(run(again, jax.random.key(3))[1])
    for path in plain:
        np.testing.assert_allclose(plain[path], saved[path], atol=1e-4, err_msg=path)
    assert loss == run(model, jax.random.key(3))[0] != run(model, jax.random.key(4))[0]


def test_every_parameter_learns(model, audio):
    losses = lambda m: sum(apt.alignment_losses(m, m.normalise(Features(audio[None])), TEXT, jax.random.key(0)))
    silent = {path for path, g in tree.flatten(jax.jit(jax.grad(losses))(model)).items() if not np.abs(g).max() > 0}
    assert silent == {"proj.kernel", "proj.bias"}  # the decoder's


def test_negatives_are_other_rows():
    similar = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)) * 20)
    keys = jax.random.split(jax.random.key(0), 200)
    clips, texts = jax.vmap(lambda key: apt.draw_negatives(similar, key))(keys)
    assert not (clips == jnp.arange(4)).any() and not (texts == jnp.arange(4)).any()
    others = np.where(np.eye(4, dtype=bool), -np.inf, similar)
    most = [np.bincount(column, minlength=4).argmax() for column in np.asarray(texts).T]
    assert most == list(others.argmax(1))  # of a clip, the text most similar to it


def test_losses_by_hand():
    """float64 NumPy against float32."""
    similar = np.random.default_rng(0).normal(size=(3, 3)) * 4
    log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    smooth = 0.9 * np.eye(3) + 0.1 / 3
    expected = -(smooth * log(similar)).sum(-1).mean() / 2 - (smooth * log(similar.T)).sum(-1).mean() / 2
    np.testing.assert_allclose(apt.contrast_loss(jnp.asarray(similar, jnp.float32)), expected, rtol=1e-6)
    logits = np.random.default_rng(1).normal(size=(9, 2))
    expected = -log(logits)[np.arange(9), [1] * 3 + [0] * 6].mean()
    np.testing.assert_allclose(apt.match_loss(jnp.asarray(logits, jnp.float32)), expected, rtol=1e-6)
