"""Objectives against their definitions written out in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.sequence import Row, collate
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu
from alm_jax.train.objectives import heard_words, next_token
from tests.modules import randomised


@pytest.fixture(scope="module")
def model():
    decoder = LlamaConfig(vocab_size=30, dim=16, depth=1, heads=2, kv_heads=2, mlp_dim=16)
    encoder = CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=1)
    return randomised(lambda key: build(ltu(decoder, encoder), key), 0.1)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    audio = np.array([0, 1, -1, -1, -1])
    tokens = np.where(audio < 0, rng.integers(3, 30, (2, 5)), 0)
    rows = [Row(t, audio, np.full(5, -1), np.roll(t, -1), np.array([0, 1, 1, 1, 0]), audio < 0, (0,)) for t in tokens]
    made = collate(rows, 6, slots=1)
    made.audio = rng.normal(size=(2, 1, 64, 32)).astype(np.float32)
    return made


@partial(jax.jit, static_argnums=0)
def run(objective, model, batch):
    return objective(model, batch, jnp.asarray(batch.loss_weight), None, jnp.float32)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_next_token_is_the_weighted_negative_log_likelihood(model, batch):
    probabilities = _softmax(np.asarray(jax.jit(lambda model: model.logits(model.hidden(batch)))(model), np.float64))
    said = np.take_along_axis(probabilities, batch.targets[..., None], -1)[..., 0]
    ours, _ = run(next_token, model, batch)
    np.testing.assert_allclose(ours, -(np.log(said) * batch.loss_weight).sum(), rtol=1e-5)  # float32 against float64


def test_heard_words_is_the_mean_probability_over_audio_tokens_and_their_length(model, batch):
    table = np.asarray(model.decoder.embed.embedding[...], np.float64)
    centred = table - table.mean(0)
    spread = np.sqrt((centred**2).sum(-1).mean())
    tokens = np.asarray(jax.jit(lambda model: model.audio_tokens(batch.audio))(model), np.float64) - table.mean(0)
    length = np.linalg.norm(tokens, axis=-1)
    mixture = _softmax(60 * tokens / length[..., None] @ centred.T / spread).mean(1)  # [B, V]
    said = -(np.log(np.take_along_axis(mixture, batch.targets, -1)) * batch.loss_weight).sum()
    stretched = (np.log(length / spread) ** 2).mean(1) @ batch.loss_weight.sum(1)
    ours, parts = run(heard_words, model, batch)
    # float32 against float64, scores of up to 60
    np.testing.assert_allclose([parts["words_loss"], parts["length_loss"]], [said, stretched], rtol=2e-5)
    np.testing.assert_allclose(ours, said + stretched, rtol=2e-5)


@pytest.mark.parametrize("objective", [next_token, heard_words])
def test_linear_in_the_weights_so_that_rows_may_come_in_parts(model, batch, objective):
    whole, _ = run(objective, model, batch)
    parts = [run(objective, model, batch[i : i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


def test_heard_words_reaches_the_aligner_and_no_language_model(model, batch):
    grads = tree.flatten(jax.jit(jax.grad(lambda model: run(heard_words, model, batch)[0]))(model))
    assert np.abs(grads["aligner.proj.kernel"]).max() > 0
    assert np.abs(grads["decoder.blocks.attn.q.kernel"]).max() == 0
