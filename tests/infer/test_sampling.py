"""The sampler against the logits processors of `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.infer.sampling import LTU_SAMPLING, Sampling, choose, warp

VOCAB = 300


def _transformers_scores(logits, seen, sampling):
    torch = pytest.importorskip("torch")
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = torch.tensor(np.array(logits))
    ids = torch.tensor(np.flatnonzero(seen[0])[None])
    chain = [
        RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        TemperatureLogitsWarper(sampling.temperature),
        TopKLogitsWarper(sampling.top_k),
        TopPLogitsWarper(sampling.top_p),
    ]
    for processor in chain:
        scores = processor(ids, scores)
    return scores.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("sampling", [LTU_SAMPLING, Sampling(0.7, 20, 0.9, 1.3), Sampling(1.0, 5, 0.3, 0.8)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_warp_equals_transformers(sampling, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(1, VOCAB)) * 3).astype(np.float32)
    seen = rng.random((1, VOCAB)) < 0.1
    ours = np.asarray(warp(jnp.asarray(logits), jnp.asarray(seen), sampling))
    theirs = _transformers_scores(logits, seen, sampling)
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
    kept = ~np.isinf(theirs)
    np.testing.assert_allclose(ours[kept], theirs[kept], rtol=1e-6)  # one float32 division apart


def test_greedy_ignores_filters_but_not_the_penalty():
    logits = jnp.array([[2.0, 1.9, -1.0]])
    keys = jax.random.split(jax.random.key(0), 1)
    nothing = jnp.zeros((1, 3), bool)
    assert int(choose(logits, nothing, Sampling(), keys)[0]) == 0
    assert int(choose(logits, nothing.at[0, 0].set(True), Sampling(repetition_penalty=2.0), keys)[0]) == 1


def test_draws_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.2])
    logits = jnp.log(jnp.asarray(probabilities))[None].repeat(4000, 0)
    drawn = choose(logits, jnp.zeros(logits.shape, bool), Sampling(1.0), jax.random.split(jax.random.key(1), 4000))
    shares = np.bincount(np.asarray(drawn), minlength=3) / 4000
    np.testing.assert_allclose(shares, probabilities, atol=0.03)  # 3.8 standard errors of a share of one half


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"repetition_penalty": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
