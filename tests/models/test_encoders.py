"""Taps, pooling and shapes of the encoders; values are compared elsewhere (recorded outputs, transformers)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.models.encoders.cav_mae import CavMae, CavMaeConfig
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from tests.modules import randomised

WHISPER = WhisperConfig(mels=8, dim=16, heads=2, depth=4, positions=40)


@pytest.fixture(scope="module")
def whisper():
    return randomised(lambda key: Whisper(WHISPER, key), 0.1)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).normal(size=(2, 80, 8)).astype(np.float32)


@jax.jit
def _by_hand(model, frames):
    """Every stream between layers, one layer at a time: [depth + 1, B, T, D]."""
    gelu = lambda y: jax.nn.gelu(y, approximate=False)
    x = gelu(model.conv2(gelu(model.conv1(frames)))) + model.pos_embed[...]
    streams = [x]
    for i in range(WHISPER.depth):
        x = jax.tree.map(lambda leaf: leaf[i], model.blocks)(x)  # noqa: B023
        streams.append(x)
    return jnp.stack(streams)


@pytest.mark.parametrize("taps", [(4,), (0, 2), (1, 2, 3, 4), (0, 1, 2, 3, 4), (3, 1, 0)])
@pytest.mark.parametrize("pool", [1, 4])
def test_taps_are_the_streams_between_layers(whisper, frames, taps, pool):
    ours = jax.jit(lambda model, frames: model(frames, taps, pool).values)(whisper, frames)
    streams = np.asarray(_by_hand(whisper, frames))[list(taps)]
    pooled = streams.reshape(*streams.shape[:2], -1, pool, 16).mean(3)
    np.testing.assert_allclose(ours, pooled, atol=2e-6)  # the same float32 sums, fused differently


def test_no_taps_is_the_normalised_output(whisper, frames):
    last = _by_hand(whisper, frames)[-1]
    np.testing.assert_allclose(whisper(frames).values[0], whisper.norm(last), atol=2e-6)


def test_shorter_input_uses_the_first_positions(whisper, frames):
    assert whisper(frames[:, :40]).values.shape == (1, 2, 20, 16)


def test_a_few_taps_are_not_stacked(whisper, frames):
    """One tap of a deep encoder holds one stream, not all of them."""
    jaxpr = jax.make_jaxpr(lambda x: whisper(x, (4,)).values)(frames)
    stacked = (WHISPER.depth, 2, 40, 16)
    assert not [v for eqn in jaxpr.eqns for v in eqn.outvars if getattr(v.aval, "shape", None) == stacked]


def test_remat_changes_memory_not_gradients(frames):
    def gradient(remat):
        model = randomised(lambda key: Whisper(dataclasses.replace(WHISPER, remat=remat), key), 0.1)
        return tree.flatten(jax.jit(jax.grad(lambda m: (m(frames).values ** 2).sum()))(model))

    plain = gradient("none")
    for remat in ("full", "dots"):
        for path, leaf in gradient(remat).items():
            np.testing.assert_allclose(leaf, plain[path], rtol=1e-4, atol=1e-4)  # recomputed sums, other order


def test_cav_mae_patches_are_frequency_major():
    config = CavMaeConfig(frames=64, mels=32, dim=8, heads=2, depth=1)
    model = CavMae(config, jax.random.key(0))
    quiet = np.zeros((1, 64, 32), np.float32)
    loud = quiet.copy()
    loud[0, 16:32, 16:32] = 1.0  # second patch in time, second in frequency
    moved = np.abs(np.asarray(model.embed(loud) - model.embed(quiet))).sum(-1)[0]
    assert np.flatnonzero(moved).tolist() == [1 * 4 + 1]
