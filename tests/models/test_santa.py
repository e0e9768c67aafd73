"""Santa against its equations written out in NumPy, and where there is little to draw upon; recorded outputs of the
official code are checked by `tools/check_golden.py`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.models.santa import PAPER, Memory, SantaConfig, build_memory, noise_variance, retrieve, santa

CLEAN = SantaConfig(clusters=4, neighbours=5, noise_variance=0.0)
ROUNDING = 1e-5  # float32, sums of a few dozen numbers of about 1


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32) * 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("clusters", [4, 0])
def test_equations_6_and_7(texts, clips, normalise, clusters):
    config = replace(CLEAN, normalise=normalise, clusters=clusters)
    memory = build_memory(jnp.asarray(texts), config)
    assert len(memory.means) == max(1, clusters)
    found = santa(jnp.asarray(clips), memory, config)
    bank, assigned = unit(texts), np.asarray(memory.assigned)
    np.testing.assert_allclose(memory.bank, bank, atol=ROUNDING)
    for z, out in zip(unit(clips) if normalise else clips, np.asarray(found)):
        near = np.linalg.norm(z - np.asarray(memory.means), axis=1).argmin()
        inside = bank[assigned == near]
        m = inside[np.argsort(np.linalg.norm(z - inside, axis=1), kind="stable")[:5]]
        m = np.concatenate([m, np.repeat(inside[:1], 5 - len(m), axis=0)])
        w = np.exp(10 * m @ z - (10 * m @ z).max())
        np.testing.assert_allclose(out, 0.7 * z + 0.3 * (w / w.sum()) @ m, atol=ROUNDING)


def test_all_of_the_share_leaves_texts_alone(texts, clips):
    config = replace(CLEAN, share=1.0)
    memory = build_memory(jnp.asarray(texts), config)
    assert np.linalg.norm(santa(jnp.asarray(clips), memory, config), axis=1).max() <= 1 + ROUNDING
    none = replace(CLEAN, share=0.0)
    np.testing.assert_array_equal(santa(jnp.asarray(clips), memory, none), clips)


def test_noise_is_the_same_every_time_and_for_every_clip(texts, clips):
    config = replace(CLEAN, noise_variance=0.015)
    memory = build_memory(jnp.asarray(texts), config)
    once, alone = santa(jnp.asarray(clips), memory, config), santa(jnp.asarray(clips[1:2]), memory, config)
    np.testing.assert_allclose(once[1:2], alone, atol=ROUNDING)
    assert np.abs(santa(jnp.asarray(clips), memory, replace(config, seed=1)) - once).max() > 0.01
    np.testing.assert_array_equal(build_memory(jnp.asarray(texts), config).bank, memory.bank)
    paper = replace(PAPER, clusters=4, neighbours=5)
    noisy = build_memory(jnp.asarray(texts), paper)
    # Added once, to the memory: 16 numbers of variance 0.015 leave a cosine of about 1 / sqrt(1 + 16 * 0.015).
    assert 0.8 < float((noisy.bank * memory.bank).sum(1).mean()) < 0.95
    quiet = replace(paper, noise_variance=0.0)
    np.testing.assert_array_equal(santa(jnp.asarray(clips), noisy, paper), santa(jnp.asarray(clips), noisy, quiet))


def test_a_memory_is_drawn_where_there_are_more_texts(texts):
    config = replace(CLEAN, memory=10)
    bank = np.asarray(build_memory(jnp.asarray(texts), config).bank)
    assert len({row.tobytes() for row in bank}) == 10
    assert all(np.abs(unit(texts) - row).max(1).min() < ROUNDING for row in bank)
    np.testing.assert_array_equal(bank, build_memory(jnp.asarray(texts), config).bank)
    assert np.abs(bank - build_memory(jnp.asarray(texts), replace(config, seed=1)).bank).max() > 0.1


def test_too_little_to_build_from(texts):
    with pytest.raises(ConfigError, match="the memory is empty"):
        build_memory(jnp.zeros((0, 16)), CLEAN)
    with pytest.raises(ConfigError, match=r"santa.clusters is 4 and the memory holds 3 texts: build it from more, or"):
        build_memory(jnp.asarray(texts[:3]), CLEAN)
    with pytest.raises(ConfigError, match=r"santa\.share is 1\.5; expected from 0 to 1"):
        SantaConfig(share=1.5)


def test_more_neighbours_than_there_are(texts, clips):
    """A cluster that has too few gives its first again and again (official code, with k-means)."""
    few = replace(CLEAN, clusters=1, neighbours=7)
    memory = build_memory(jnp.asarray(texts[:4]), few)
    found = retrieve(jnp.asarray(clips), memory, few, jnp.zeros((7, 16)))
    assert found.neighbours.shape == (3, 7, 16)
    for row in np.asarray(found.neighbours):
        np.testing.assert_allclose(np.sort(row[:4], 0), np.sort(unit(texts[:4]), 0), atol=ROUNDING)
        np.testing.assert_allclose(row[4:], np.repeat(unit(texts[:1]), 3, 0), atol=ROUNDING)


def test_a_memory_smaller_than_the_neighbours(texts, clips):
    """Without k-means the official code takes what there is, each once: a projection onto all texts (DRCap)."""
    config = replace(CLEAN, clusters=0, neighbours=5172, share=1.0)
    bank, z = unit(texts[:4]), clips.astype(np.float64)
    found = retrieve(jnp.asarray(clips), build_memory(jnp.asarray(texts[:4]), config), config, jnp.zeros((5172, 16)))
    assert found.neighbours.shape == (3, 4, 16)
    powers = np.exp(config.temperature * z @ bank.T)
    np.testing.assert_allclose(found.embeddings, powers / powers.sum(1, keepdims=True) @ bank, atol=ROUNDING)
    noisy = replace(config, noise_variance=0.015)
    assert np.isfinite(santa(jnp.asarray(clips), build_memory(jnp.asarray(texts[:4]), noisy), noisy)).all()


def test_an_empty_cluster_is_passed_over(texts, clips):
    """The official code fails where the nearest cluster is empty."""
    bank = jnp.asarray(unit(texts))
    means = jnp.stack([jnp.asarray(clips[0]), jnp.ones(16), -jnp.ones(16)])
    memory = Memory(bank, means, jnp.asarray([1, 2] * 20))
    found = retrieve(jnp.asarray(clips[:1]), memory, CLEAN, jnp.zeros((5, 16)))
    assert int(found.cluster[0]) in (1, 2) and np.isfinite(found.embeddings).all()


def test_the_variance_is_that_of_the_gap(texts):
    """By the paper's rule: the noise reaches as far as the largest difference of a pair's numbers."""
    audio = unit(texts)
    text = audio.copy()
    text[:, 3] += 0.1
    # Of length 1 again, the difference at 3 is a little less.
    gap = np.abs(unit(text) - audio).max(1)
    np.testing.assert_allclose(noise_variance(audio * 5, text * 2), np.mean(gap) ** 2, rtol=1e-4)
    assert noise_variance(audio, audio) == 0


def test_it_compiles_as_one_program(texts, clips):
    """As it runs in a loaded model."""
    memory = build_memory(jnp.asarray(texts), CLEAN)
    compiled = jax.jit(lambda z, memory: santa(z, memory, CLEAN))
    np.testing.assert_allclose(
        compiled(jnp.asarray(clips), memory), santa(jnp.asarray(clips), memory, CLEAN), atol=ROUNDING
    )
