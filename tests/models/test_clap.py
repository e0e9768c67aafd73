"""CLAPs of any towers: how they are put together, and how what is trained is named."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.frontend import KaldiFbank, LibrosaLogMel, WhisperLogMel
from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.layers.norm import layer_norm
from alm_jax.models.alm import build
from alm_jax.models.clap import AudioTower, Clap, ClapConfig, LaionClapConfig, TextTower
from alm_jax.models.clap_training import clap_arrays, clap_config, clap_training, training_path
from alm_jax.models.encoders.ast import AstConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.beats import BeatsConfig
from alm_jax.models.encoders.cnn14 import Cnn14Config
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.features import AlignerText
from alm_jax.models.registry import CONFIGS
from alm_jax.models.text.bert import BertConfig

TEXT = BertConfig(60, 16, 1, 2, 32, positions=40, pooler=False)
WHISPER = WhisperConfig(mels=8, dim=16, heads=2, depth=2, positions=50)
CLAP = ClapConfig(
    audio=WHISPER, text=TEXT, dim=12, frontend=WhisperLogMel(8, 40, "mel"), taps=(1, 2), pool=5, contrast="sigmoid"
)
SMALL = {"frames": 32, "mels": 16, "dim": 16, "heads": 2, "depth": 1, "mlp_dim": 16}
FBANK = KaldiFbank(frames=32, num_mels=16)
TOWERS = {
    "whisper": CLAP,
    "ast": replace(CLAP, audio=AstConfig(**SMALL), frontend=FBANK, taps=None),
    "audio_mae": replace(CLAP, audio=AudioMaeConfig(**SMALL), frontend=FBANK, taps=None, pool=1),
    "beats": replace(CLAP, audio=BeatsConfig(4, 8, 16, 2, 2, 16, 4, 2, 8, 12), frontend=FBANK),
    "cnn14": replace(
        CLAP, audio=Cnn14Config(mels=64, channels=(4,) * 6), frontend=LibrosaLogMel(seconds=0.5), taps=None, pool=1
    ),
    "htsat": replace(
        CLAP,
        audio=HtsatConfig(embed_dim=8, depths=(1, 1), heads=(1, 2)),
        frontend=LibrosaLogMel(seconds=0.5),
        taps=None,
        pool=1,
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_model_that_is_trained_is_the_clap(name):
    """Same parameters by other names, same embeddings, whatever listens."""
    config = TOWERS[name]
    training = clap_training(config)
    assert clap_config(training) == config
    like = tree.abstract(lambda key: build(training, key))
    rng = np.random.default_rng(0)
    values = {path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in tree.flatten(like).items()}
    values = {path: jnp.abs(leaf) if path.endswith(".var") else 0.2 * leaf for path, leaf in values.items()}
    whole = tree.abstract(lambda key: Clap(config, key))
    assert {training_path(path) for path in tree.flatten(whole)} == set(values)
    trained, clap = tree.unflatten(like, values), tree.unflatten(whole, clap_arrays(values))
    frames = jnp.asarray(rng.normal(size=(2, *config.frontend.feature_shape)), jnp.float32)

    def heard(model, frames):
        features = model.encode(frames)
        return model.aligner.encode_audio(features), model.aligner(features)[0][:, 0], features.values

    embedding, token, features = jax.jit(heard)(trained, frames)
    assert features.shape[0::2] + features.shape[3:] == training.aligner.feature_shape
    expected = jax.jit(lambda model, frames: model.encode_audio(frames, normalise=True))(clap, frames)
    for found in (embedding, token):
        np.testing.assert_allclose(found, expected, atol=1e-5)  # float32, another fusion


def test_layers_are_normalised_and_heard_side_by_side():
    config = replace(CLAP, projection=None, dim=32, text=replace(TEXT, dim=32), pool=1)
    tower = AudioTower(config, jax.random.key(0))
    frames = jax.random.normal(jax.random.key(1), (2, 40, 8))
    layers = tower.encoder(frames, (1, 2)).values
    expected = np.concatenate([np.asarray(layer_norm(layer)).mean(1) for layer in layers], axis=-1)
    np.testing.assert_allclose(tower(frames), expected, atol=1e-5)


def test_a_bert_without_a_pooler_is_the_mean_of_its_tokens():
    tower = TextTower(replace(CLAP, projection=None, dim=16, audio=WHISPER, taps=None), jax.random.key(0))
    ids = jnp.array([[1, 5, 2, 0, 0], [1, 7, 8, 9, 2]])
    mask = jnp.array([[1, 1, 1, 0, 0], [1] * 5])
    hidden = tower.hidden(ids, mask)
    np.testing.assert_allclose(tower(ids, mask), [hidden[0, :3].mean(0), hidden[1].mean(0)], atol=1e-6)
    np.testing.assert_allclose(tower(ids[:1, :3], mask[:1, :3]), tower(ids, mask)[:1], atol=1e-5)


def test_widths_that_nothing_joins():
    with pytest.raises(ConfigError, match="audio has width 16, text has width 24, the common space 16, and projection"):
        replace(CLAP, text=replace(TEXT, dim=24), dim=16, taps=None, projection=None)
    assert replace(CLAP, text=replace(TEXT, dim=24)).projection == "residual"  # with one, any widths do


def test_published_shapes():
    for name, width, dim in (("msclap_2023", 768, 1024), ("clap_htsat_unfused", 768, 512)):
        heads = clap_training(CONFIGS[name]).aligner
        assert (heads.dim, heads.feature_shape, heads.out_dim) == (width, (1, 64, width), dim)
        assert clap_config(clap_training(CONFIGS[name])) == CONFIGS[name]
    assert isinstance(clap_config(clap_training(LaionClapConfig())), LaionClapConfig)


def test_scale_and_bias_begin_as_published():
    """CLIP's temperature 0.07; SigLIP's scale 10 and bias -10. Scales stop at 100."""
    heads = {
        c: build(clap_training(replace(CLAP, contrast=c)), jax.random.key(0)).aligner for c in ("softmax", "sigmoid")
    }
    np.testing.assert_allclose(jnp.exp(heads["softmax"].logit_scale[...]), [1 / 0.07], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(heads["sigmoid"].logit_scale[...]), [10.0], rtol=1e-6)
    assert heads["softmax"].logit_bias is None and heads["sigmoid"].logit_bias[0] == -10.0
    softmax, pairs = heads["softmax"], jnp.eye(2)
    softmax.logit_scale[...] = jnp.full(1, 9.0)
    np.testing.assert_allclose(softmax.contrast(pairs, -pairs), 100.0, rtol=1e-6)


def test_dropout_of_projections_in_training_alone():
    heads = build(clap_training(replace(CLAP, dropout=0.5)), jax.random.key(0)).aligner
    text = AlignerText(jnp.array([[1, 5, 2]]), jnp.ones((1, 3), bool))
    plain, dropped = heads.encode_text(text), heads.encode_text(text, jax.random.key(1))
    assert not np.allclose(plain, dropped)
    np.testing.assert_allclose(heads.encode_text(text), plain)
