"""The alignment stage's objective: which rows it compares, and that no mesh changes it.

The losses themselves are compared with the official code's by `tools/check_golden.py` and by hand in
`tests/models/test_qformer.py`.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Row, collate
from alm_jax.models import apt
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormerConfig
from alm_jax.models.alm import build
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.train.objectives import audio_text_alignment
from tests.devices import host_devices
from tests.modules import randomised

ENCODER = AudioMaeConfig(frames=32, mels=16, dim=12, heads=2, depth=1, mlp_dim=16)
ALIGNER = QFormerConfig(
    queries=3, hidden=16, depth=1, heads=2, mlp_dim=16, vocab_size=20, positions=8, pretraining=PretrainingConfig(dim=8)
)
CONFIG = apt.apt(None, ENCODER, ALIGNER)


def make_model():
    """Weights large enough that rows differ."""
    return randomised(lambda key: build(CONFIG, key), 0.2)


def make_batch(rows, empty=0, silent=()):
    """`rows` pairs of a clip and a text, `empty` places without one; `silent` rows could not be heard."""
    rng = np.random.default_rng(1)
    texts = [(1, *rng.integers(3, 19, 2 + i % 4), 2) for i in range(rows)]
    none, ones = np.full(4, -1), np.ones(4, np.int32)
    made = [
        Row(ones, none, none, ones, 1.0 * ones * (i not in silent), ones > 0, (0,), (t,)) for i, t in enumerate(texts)
    ]
    nothing = np.zeros(0, np.int32)
    made += [Row(*[nothing] * 6)] * empty
    batch = collate(made, 4, slots=1, aligner_length=8)
    batch.audio = np.zeros((rows + empty, 1, 32, 16), np.float32)
    batch.audio[:rows] = np.random.default_rng(2).normal(size=(rows, 1, 32, 16))
    return batch


def loss(model, batch, key=None):
    return audio_text_alignment(model, batch, jnp.asarray(batch.loss_weight), key, jnp.float32)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def run():
    return jax.jit(loss)


def test_the_sum_of_three_losses_times_the_weight(model, run):
    batch = make_batch(4)
    total, parts = run(model, batch)
    assert parts.keys() == {"contrast_loss", "match_loss", "text_loss"}
    np.testing.assert_allclose(total, sum(parts.values()), rtol=1e-6)
    text = apt.AlignerText(jnp.asarray(batch.aligner_tokens[:, 0]), jnp.asarray(batch.aligner_mask[:, 0]))
    hear = lambda model, audio: model.aligner.normalise(model.encode(audio))
    audio = jax.jit(hear)(model, batch.audio[:, 0])
    expected = jax.jit(lambda model: apt.alignment_losses(model.aligner, audio, text))(model)
    np.testing.assert_allclose(list(parts.values()), 16 * np.array(expected), rtol=1e-5)  # float32, other fusions


def test_places_without_a_pair_take_no_part(model, run):
    """Padding, and a row whose clip could not be heard: the losses are those of the other rows alone."""
    learn = jax.jit(jax.value_and_grad(loss, has_aux=True))
    whole, ((_, parts), _) = run(model, make_batch(4))[1], learn(model, make_batch(4, empty=2))
    for name in ("contrast_loss", "text_loss"):  # other negatives are drawn from a batch of another size
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)  # float32
    (_, parts), _ = learn(model, make_batch(5, silent=(4,), empty=1))
    for name in ("contrast_loss", "text_loss"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)
    (total, _), grads = learn(model, make_batch(4, 2, range(4)))
    assert total == 0 and not any(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))  # nothing, and no NaN
    rows, similar = jnp.arange(6) < 4, jax.random.normal(jax.random.key(0), (6, 6))
    clips, texts = jax.vmap(lambda key: apt.draw_negatives(similar, key, rows))(jax.random.split(jax.random.key(1), 50))
    assert max(clips[:, :4].max(), texts[:, :4].max()) < 4


def test_a_single_pair_has_no_negatives(model, run):
    logits = jnp.array([[0.0, 1.0], [3.0, 0.0], [2.0, 0.0]] * 2).reshape(6, 2)
    one = apt.match_loss(logits, jnp.array([True, False]))
    np.testing.assert_allclose(one, np.log(1 + np.exp(-1.0)), rtol=1e-6)
    assert np.isfinite(run(model, make_batch(1, empty=1))[0])


def test_random_in_training_alone(model, run):
    batch = make_batch(4)
    assert run(model, batch)[0] == run(model, batch)[0]
    first, again, other = (run(model, batch, jax.random.key(k))[0] for k in (0, 0, 1))
    assert first == again != other


def test_what_it_needs_is_said(model):
    with pytest.raises(ConfigError, match=r"needs aligner\.pretraining"):
        loss(tree.abstract(lambda key: build(apt.apt(None, ENCODER), key)), make_batch(2))
    batch = make_batch(2)
    batch.aligner_tokens = None
    with pytest.raises(ConfigError, match=r"needs layout\.aligner_text_tokens and an aligner_tokenizer"):
        loss(model, batch)
    batch = make_batch(2)
    batch.audio = np.concatenate([batch.audio] * 2, axis=1)
    with pytest.raises(ConfigError, match="pairs a text with one clip; rows hear 2"):
        loss(model, batch)


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from alm_jax.core import mesh as meshes, tree
from tests.train.test_alignment import loss, make_batch, make_model

found = []
for sizes, devices in [((1, 1, 1), 1), ((4, 2, 1), 8)]:
    mesh = meshes.make_mesh(meshes.MeshConfig(*sizes), jax.devices()[:devices])
    model = make_model()
    places = meshes.shardings(model, mesh)
    placed = {path: jax.device_put(leaf, places[path]) for path, leaf in tree.flatten(model).items()}
    model = tree.unflatten(model, placed)
    batch = jax.device_put(make_batch(14, empty=2), meshes.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        (total, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, batch, jax.random.key(3))
    found.append((total, parts, tree.flatten(grads)))
(total, parts, grads), (total8, parts8, grads8) = found
np.testing.assert_allclose(total8, total, rtol=1e-5)
for name in parts:
    np.testing.assert_allclose(parts8[name], parts[name], rtol=1e-5, err_msg=name)
near = 1e-5 * max(np.abs(grad).max() for grad in grads.values())  # the keys' biases have none but rounding
for path in grads:
    np.testing.assert_allclose(grads8[path], grads[path], rtol=1e-4, atol=near, err_msg=path)
print("equal", len(grads), float(total))
"""


def test_eight_devices_see_each_others_rows(repo):
    """Values and gradients as on one device (sums in another order), with dropout and drawn negatives."""
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")
