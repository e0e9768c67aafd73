"""Steps whose rows are compared with each other: gradient caching, meshes and rows without a pair change nothing."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.core import mesh as meshes
from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.precision import FLOAT32
from alm_jax.core.sequence import Row, collate
from alm_jax.models.alm import build
from alm_jax.models.clap import ClapConfig
from alm_jax.models.clap_training import clap_training
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.text.bert import BertConfig
from alm_jax.train.objectives import audio_text_contrast
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.state import create_state
from alm_jax.train.step import make_eval_step, make_step
from tests.devices import host_devices
from tests.models.test_contrast import dense_sigmoid

CLAP = ClapConfig(
    audio=AudioMaeConfig(frames=32, mels=16, dim=16, heads=2, depth=1, mlp_dim=16),
    text=BertConfig(20, 8, 1, 2, 16, positions=8, pooler=False),
    dim=16,
    frontend=KaldiFbank(frames=32, num_mels=16),
    dropout=0.0,
)
OPTIM = OptimConfig(0.1, "constant", warmup_steps=0, clip_norm=None)


def make_batch(rows=16, silent=(3,)):
    """Pairs of a clip and a text; `silent` ones could not be heard."""
    rng = np.random.default_rng(1)
    texts = [(1, *rng.integers(3, 19, 2 + i % 4), 2) for i in range(rows)]
    none, ones = np.full(4, -1), np.ones(4, np.int32)
    made = [
        Row(ones, none, none, ones, 1.0 * ones * (i not in silent), ones > 0, (0,), (t,)) for i, t in enumerate(texts)
    ]
    batch = collate(made, 4, slots=1, aligner_length=8)
    batch.audio = rng.normal(size=(rows, 1, 32, 16)).astype(np.float32)
    return batch


def start(config=CLAP, mesh=None, objective=audio_text_contrast, **options):
    """(step, state, frozen parameters, abstract model), with weights large enough that rows differ."""
    like = tree.abstract(lambda key: build(clap_training(config), key))
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) for path, leaf in tree.flatten(like).items()
    }
    params["aligner.logit_scale"] = jnp.full(1, 2.0)
    if mesh is not None:
        places = meshes.shardings(like, mesh)
        params = {path: jax.device_put(leaf, places[path]) for path, leaf in params.items()}
    optimizer = make_optimizer(OPTIM, 10)
    frozen = {path: params.pop(path) for path in list(params) if path == "encoder.pos_embed"}
    state = create_state(params, optimizer, jax.random.key(1))
    return make_step(like, optimizer, FLOAT32, objective=objective, mesh=mesh, **options), state, frozen, like


def stepped(batch=None, mesh=None, **options):
    """(metrics, first moments, which are the gradients up to a factor)."""
    step, state, frozen, _ = start(mesh=mesh, **options)
    new, metrics = step(state, frozen, make_batch() if batch is None else batch)
    return metrics, moments(new)


def moments(state):
    """Adam's first moments: after one step a tenth of the gradients."""
    adam = lambda x: hasattr(x, "mu")
    (found,) = filter(adam, jax.tree.leaves(state.opt_state, is_leaf=adam))
    return {path: 10 * leaf for path, leaf in found.mu.items()}


def near(found, expected):
    (metrics, grads), (metrics0, grads0) = found, expected
    np.testing.assert_allclose(metrics["loss"], metrics0["loss"], rtol=1e-5)  # float32, sums in another order
    largest = max(float(np.abs(leaf).max()) for leaf in grads0.values())
    assert largest > 0.01
    for path in grads0:
        np.testing.assert_allclose(grads[path], grads0[path], rtol=1e-4, atol=1e-5 * largest, err_msg=path)


@pytest.fixture(scope="module")
def whole():
    return stepped()


def test_gradient_caching_is_exact(whole):
    near(stepped(micro_batch=4), whole)


def test_gradient_caching_repeats_dropout():
    """The second pass drops what the first did: then a small step downhill lowers the loss under these masks."""
    config = replace(CLAP, dropout=0.5)
    step, state, frozen, _ = start(config, micro_batch=4)
    params = {path: np.asarray(leaf) for path, leaf in state.params.items()}
    new, metrics = step(state, frozen, make_batch())
    grads = moments(new)
    square = sum(float((leaf**2).sum()) for leaf in grads.values())
    rate = 1e-3 / square
    _, again, _, _ = start(config, micro_batch=4)
    again = replace(again, params={path: jnp.asarray(params[path] - rate * grads[path]) for path in params})
    _, after = step(again, frozen, make_batch())
    np.testing.assert_allclose(metrics["loss"] - after["loss"], 1e-3, rtol=0.05)  # the slope; float32, second order


def test_the_loss_is_the_closed_form_of_pairs_that_were_heard():
    config = replace(CLAP, contrast="sigmoid")
    _, state, frozen, like = start(config)
    params, batch = {**frozen, **state.params}, make_batch()

    @jax.jit
    def expected(params):
        model = tree.unflatten(like, params)
        audio, text = audio_text_contrast.embed(model, batch, None, jnp.float32)
        learnt = jnp.exp(model.aligner.logit_scale[0]), model.aligner.logit_bias[0]
        return dense_sigmoid(audio, text, learnt, jnp.arange(16) != 3)

    found = make_eval_step(like, FLOAT32, audio_text_contrast)(params, {}, batch)
    assert found["targets"] == 60 and found.keys() == {"loss", "targets"}
    np.testing.assert_allclose(found["loss"] / 60, expected(params), rtol=1e-5)  # float32


def test_what_it_needs_is_said():
    step, state, frozen, _ = start()
    batch = make_batch()
    batch.aligner_tokens = batch.aligner_mask = None
    with pytest.raises(ConfigError, match=r"needs layout\.aligner_text_tokens and an aligner_tokenizer"):
        step(state, frozen, batch)
    step, state, frozen, _ = start(micro_batch=3)
    with pytest.raises(ConfigError, match="micro_batch 3 has to divide batch_size 16"):
        step(state, frozen, make_batch())


EIGHT = """
import sys
import jax, numpy as np
from alm_jax.core import mesh as meshes
from tests.train.test_contrast_step import make_batch, near, stepped

grads = dict(np.load(sys.argv[1]))
expected = {"loss": grads.pop("loss")}, grads
for sizes, micro in (((2, 4, 1), None), ((4, 2, 1), 8)):
    mesh = meshes.make_mesh(meshes.MeshConfig(*sizes))
    batch = jax.device_put(make_batch(), meshes.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        near(stepped(batch, mesh, micro_batch=micro), expected)
print("equal")
"""


def test_eight_devices_and_one(repo, whole, tmp_path):
    metrics, grads = whole
    np.savez(tmp_path / "one.npz", loss=metrics["loss"], **grads)
    command = [sys.executable, "-c", EIGHT, tmp_path / "one.npz"]
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8), "PATH": ""}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")
