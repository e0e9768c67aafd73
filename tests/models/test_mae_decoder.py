"""Audio-MAE's pretraining: what is hidden stays hidden, what is learnt is only that."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.models.aligners.mae_decoder import MaeDecoder, MaeDecoderConfig, Masks
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig

ENCODER = AudioMaeConfig(frames=32, mels=16, patch=4, stride=4, dim=16, heads=2, depth=1, mlp_dim=16, global_pool=False)
DECODER = MaeDecoderConfig(hidden=8, heads=2, depth=2, window=4).over(ENCODER)


def filled(module, config):
    like = tree.abstract(lambda key: module(config, key))
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)
    return tree.unflatten(like, {path: draw(leaf.shape) for path, leaf in tree.flatten(like).items()})


@pytest.fixture(scope="module")
def parts():
    return filled(AudioMae, ENCODER), filled(MaeDecoder, DECODER)


@pytest.fixture(scope="module")
def frames():
    return jax.random.normal(jax.random.key(5), (2, 32, 16))


def pixels(masks):
    """bool [B, frames, mels]: where hidden patches are; patch t * 4 + f."""
    hidden = np.zeros((len(masks.hidden), 32), bool)
    np.put_along_axis(hidden, np.asarray(masks.hidden), True, axis=1)
    return hidden.reshape(-1, 8, 4).repeat(4, axis=1).repeat(4, axis=2)


def test_published_shape():
    """512 patches of ten seconds, of which 102 are seen."""
    config = MaeDecoderConfig()
    assert (config.patches, config.hidden_patches, config.tokens) == (512, 410, 512)
    assert config.over(AudioMaeConfig(global_pool=False)) == config


def test_masks_divide_the_patches_and_follow_the_key(parts):
    masks = parts[1].draw(5, jax.random.key(0))
    assert masks.seen.shape == (5, 6) and masks.hidden.shape == (5, 26)  # 80% of 32, rounded as published
    np.testing.assert_array_equal(np.sort(np.concatenate(masks, axis=1), axis=1), np.tile(np.arange(32), (5, 1)))
    assert not np.array_equal(masks.seen[0], masks.seen[1])
    for found, same in zip(masks, parts[1].draw(5, jax.random.key(0))):
        np.testing.assert_array_equal(found, same)
    assert not np.array_equal(masks.seen, parts[1].draw(5, jax.random.key(1)).seen)


def test_hidden_patches_do_not_reach_the_encoder(parts, frames):
    """The gradient of all that is decoded for a hidden value is zero, and for a seen one it is not."""
    encoder, decoder = parts
    masks = decoder.draw(2, jax.random.key(0))
    decoded = lambda frames: jnp.square(decoder(encoder.seen(frames, masks.seen), masks)).sum()
    grad = np.asarray(jax.jit(jax.grad(decoded))(frames))
    hidden = pixels(masks)
    assert not grad[hidden].any() and np.abs(grad[~hidden]).min() > 0


def test_the_loss_is_of_hidden_patches_alone(parts, frames):
    encoder, decoder = parts
    key = jax.random.key(0)
    masks = decoder.draw(2, key)

    @jax.jit
    def run(frames):
        return decoder.reconstruction(encoder, frames, key), decoder(encoder.seen(frames, masks.seen), masks)

    loss, found = map(np.asarray, run(frames))
    for clip, (error, hidden) in enumerate(zip(loss, np.asarray(masks.hidden))):
        each = []
        for patch in hidden:
            t, f = divmod(patch, 4)
            values = np.asarray(frames)[clip, 4 * t : 4 * t + 4, 4 * f : 4 * f + 4].reshape(-1)
            target = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            each.append(((found[clip, patch] - target) ** 2).mean())
        np.testing.assert_allclose(error, np.mean(each), rtol=1e-5)  # float32


def test_everything_seen_is_what_the_encoder_gives(parts, frames):
    """With every patch in its place it is the plain encoder: positions go with the patches."""
    encoder, _ = parts
    order = jax.random.permutation(jax.random.key(3), 32)
    seen = jax.jit(lambda x: encoder.seen(x, jnp.tile(order, (2, 1))))(frames)
    whole = jax.jit(lambda x: encoder(x).values[0])(frames)
    np.testing.assert_allclose(seen, whole[:, order], atol=1e-5)  # float32, another order of sums


def test_patches_go_back_to_their_places(parts):
    """The order in which seen patches come changes nothing."""
    _, decoder = parts
    masks = Masks(jnp.array([[31, 0]]), jnp.arange(1, 31)[None])
    features = jnp.stack([jnp.zeros(16), jnp.ones(16)])[None]
    swapped = decoder(features[:, ::-1], Masks(masks.seen[:, ::-1], masks.hidden))
    np.testing.assert_allclose(swapped, decoder(features, masks), atol=1e-6)


def test_sizes_that_do_not_fit():
    with pytest.raises(ConfigError, match="stride 4, its patch, and global_pool False; the encoder has stride 2"):
        DECODER.over(replace(ENCODER, stride=2))
    with pytest.raises(ConfigError, match="depth is 3; expected an even number"):
        replace(DECODER, depth=3)
    with pytest.raises(ConfigError, match=r"window 3 does not divide the grid of patches \(8, 4\)"):
        replace(DECODER, window=3)
    with pytest.raises(ConfigError, match=r"masked is 1\.0; expected a share"):
        replace(DECODER, masked=1.0)
