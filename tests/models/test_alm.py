"""The interleaved model: who hears what, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Row, collate
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.alm import AlmConfig, build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.models.registry import CONFIGS

DECODER = LlamaConfig(vocab_size=40, dim=32, depth=2, heads=4, kv_heads=2, mlp_dim=48, lora=Lora())
CONFIG = ltu(DECODER, CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2))


@pytest.fixture(scope="module")
def model():
    return build(CONFIG, jax.random.key(0))


def _row(layout, clips):
    """layout: per position a token id, or -1 - i for audio token i."""
    cells = np.array(layout)
    index = np.where(cells < 0, -1 - cells, -1)
    nothing = np.zeros(len(cells))
    return Row(np.maximum(cells, 0), index, np.full(len(cells), -1), nothing, nothing, nothing, clips)


def _batch(rows, audio, length=10):
    batch = collate(rows, length, slots=audio.shape[1])
    batch.audio = audio
    return batch


@pytest.fixture(scope="module")
def audio():
    return np.random.default_rng(0).normal(size=(2, 2, 64, 32)).astype(np.float32)


def test_a_row_hears_its_own_clips_where_they_stand(model, audio):
    # Row 0 hears slot 1 then slot 0 among text; row 1 hears nothing.
    batch = _batch([_row([5, -3, -4, 6, -1, -2], (0, 1)), _row([5, 6, 7], ())], audio)
    x = model.embed(batch)
    tokens = model.audio_tokens(audio)
    np.testing.assert_array_equal(x[0, 1:3], tokens[0, 2:4])
    np.testing.assert_array_equal(x[0, 4:6], tokens[0, 0:2])
    np.testing.assert_array_equal(x[1, :3], model.decoder.embed(jnp.array([5, 6, 7])))


def test_no_gradient_from_a_row_to_another_rows_clip_or_a_later_one(model, audio):
    batch = _batch([_row([5, -1, -2, 6, -3, -4], (0, 1)), _row([5, -1, -2, 6], (0,))], audio)

    def at(audio, row, position):
        batch.audio = audio
        return model.hidden(batch)[row, position].sum()

    reach = jax.grad(at)(jnp.asarray(audio), 0, 3)
    reach = np.abs(reach).sum((2, 3))
    assert reach[0, 0] > 0
    assert reach[0, 1] == 0 and (reach[1] == 0).all()


def test_pads_change_nothing(model, audio):
    rows = [_row([-1, -2, 5, 6, 7], (0,)), _row([-1, -2, 8], (0,))]
    short, long = (_batch(rows, audio, n) for n in (5, 9))
    np.testing.assert_allclose(model.hidden(short)[0], model.hidden(long)[0, :5], atol=1e-6)  # sums of other lengths


def test_features_in_place_of_an_encoder(model, audio):
    import dataclasses

    from alm_jax.core import tree

    arrays = {p: v for p, v in tree.flatten(model).items() if not p.startswith("encoder.")}
    config = dataclasses.replace(CONFIG, encoder=None)
    reader = tree.unflatten(tree.abstract(lambda key: build(config, key)), arrays)
    features = jnp.moveaxis(model.encode(audio[:, 0]).values, 0, 1)[:, None]
    assert features.shape[2:] == config.audio_shape
    np.testing.assert_allclose(reader.audio_tokens(features), model.audio_tokens(audio[:, :1]), atol=1e-6)


def test_dropout_needs_a_key_and_follows_it(model, audio):
    batch = _batch([_row([-1, -2, 5, 6], (0,))] * 2, audio)
    loud = jax.tree.map(lambda x: x + 0.1, model)  # LoRA's B is zero at first, which hides dropout
    one, two = (loud.hidden(batch, jax.random.key(i)) for i in (0, 1))
    assert np.abs(one - two).max() > 1e-4
    np.testing.assert_array_equal(loud.hidden(batch), loud.hidden(batch))


def test_indicators_stand_where_their_index_says(audio):
    import dataclasses

    model = build(dataclasses.replace(CONFIG, indicators=1), jax.random.key(0))
    row = _row([5, 6, -1], (0,))
    row.indicator_index[1] = 0
    x = model.embed(_batch([row], audio[:1]))
    np.testing.assert_array_equal(x[0, 1], model.indicators[...][0])
    np.testing.assert_array_equal(x[0, 0], model.decoder.embed(jnp.array(5)))


def test_widths_must_meet():
    with pytest.raises(ConfigError, match=r"aligner\.out_dim 4096 differs from decoder\.dim 32"):
        AlmConfig(CONFIG.frontend, CONFIG.encoder, PooledLinearConfig(dim=16), DECODER)
    with pytest.raises(ConfigError, match=r"aligner\.dim 768 differs from encoder\.dim 16"):
        AlmConfig(CONFIG.frontend, CONFIG.encoder, PooledLinearConfig(out_dim=32), DECODER)


@pytest.mark.parametrize(
    ("config", "trained", "total"),
    [(ltu(), 93_065_216, 6_831_480_832), (ltu_as(), 48_793_600, 6_787_209_216)],
)
def test_published_parameter_counts(config, trained, total):
    """The counts that the official READMEs print. LTU's includes norms that are never used: 12 blocks x 4 x 2 x 768."""
    from alm_jax.core import tree

    shapes = tree.flatten(tree.abstract(lambda key: build(config, key)))
    unused = 12 * 4 * 2 * 768 if config.encoder == CONFIGS["cav_mae"] else 0
    part = {p: s for p, s in shapes.items() if not p.startswith("decoder.") or ".lora_" in p}
    if unused == 0:  # LTU-AS counts features of Whisper, not Whisper itself
        part, shapes = ({p: s for p, s in d.items() if not p.startswith("encoder.")} for d in (part, shapes))
    assert tree.size(part) + unused == trained
    assert tree.size(shapes) + unused == total
