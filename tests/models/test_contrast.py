"""Contrastive losses against closed forms over the whole matrix of similarities, on one device and on eight."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.models import contrast
from alm_jax.models.contrast import sigmoid_contrast, softmax_contrast

B, DIM = 64, 24


def dense_softmax(audio, text, parameters, rows):
    own, cosine = jnp.arange(len(audio)), audio @ text.T
    one_way = lambda x: -jax.nn.log_softmax(jnp.where(rows, x, -jnp.inf), -1)[own, own]
    return ((one_way(parameters[0] * cosine) + one_way(parameters[1] * cosine.T)) / 2).mean(where=rows)


def dense_sigmoid(audio, text, parameters, rows):
    logits = parameters[0] * audio @ text.T + parameters[1]
    pair = 2 * jnp.eye(len(audio)) - 1
    return -jax.nn.log_sigmoid(pair * logits).sum(-1, where=rows).mean(where=rows)


LOSSES = {
    "softmax": (softmax_contrast, dense_softmax, (14.0, 9.0)),
    "sigmoid": (lambda a, t, p, r: sigmoid_contrast(a, t, *p, r), dense_sigmoid, (10.0, -10.0)),
}


def pairs(seed=0):
    x = np.random.default_rng(seed).normal(size=(2, B, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def both(name):
    """Jitted values and gradients, ours and the closed form's, and the parameters."""
    ours, dense, parameters = LOSSES[name]
    grad = lambda f: jax.jit(jax.value_and_grad(f, (0, 1, 2)))
    return grad(ours), grad(dense), tuple(map(jnp.float32, parameters))


def near(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)  # float32, sums in another order


@pytest.mark.parametrize("block", [1024, 24])  # all at once; blocks that the batch does not fill
@pytest.mark.parametrize("name", LOSSES)
def test_equal_to_the_loss_over_the_whole_matrix(name, block, monkeypatch):
    monkeypatch.setattr(contrast, "BLOCK", block)
    ours, dense, parameters = both(name)
    rows = jnp.arange(B) % 7 != 3
    near(ours(*pairs(), parameters, rows), dense(*pairs(), parameters, rows))


def test_two_pairs_by_hand():
    """Orthogonal clips at scale 2: cross-entropy log(1 + exp(-2)) each way; SigLIP's four terms."""
    one = jnp.eye(2)
    scale, bias = jnp.float32(2.0), jnp.float32(-1.0)
    np.testing.assert_allclose(softmax_contrast(one, one, (scale, scale)), np.log1p(np.exp(-2.0)), rtol=1e-6)
    expected = np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-1.0))  # pair at 2 - 1, other at -1
    np.testing.assert_allclose(sigmoid_contrast(one, one, scale, bias), expected, rtol=1e-6)


def test_blocks_of_nothing_have_no_gradient_of_their_own(monkeypatch):
    """All but the first rows are places without a pair, and whatever stands there changes nothing."""
    monkeypatch.setattr(contrast, "BLOCK", 16)
    ours, _, parameters = both("softmax")
    rows, (audio, text) = jnp.arange(B) < 10, pairs()
    value, (for_audio, for_text, _) = ours(audio, text, parameters, rows)
    assert ours(np.where(rows[:, None], audio, 3.0), text, parameters, rows)[0] == value
    assert np.isfinite(for_audio).all() and not np.abs(for_audio[10:]).max() and not np.abs(for_text[10:]).max()


EIGHT = """
import jax, numpy as np
from alm_jax.core import mesh as meshes
from tests.models.test_contrast import B, LOSSES, both, near, pairs

rows = np.arange(B) % 7 != 3
for name in LOSSES:
    ours, dense, parameters = both(name)
    expected = dense(*pairs(), parameters, rows)
    for sizes in ((8, 1, 1), (2, 4, 1), (2, 2, 2)):
        mesh = meshes.make_mesh(meshes.MeshConfig(*sizes))
        placed = jax.device_put((*pairs(), rows), meshes.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            compiled = ours.lower(*placed[:2], parameters, placed[2]).compile()
            near(compiled(*placed[:2], parameters, placed[2]), expected)
        own = B // (sizes[0] * sizes[1])
        text = compiled.as_text()
        assert f"[{own},{own}]" in text  # a device's own block is there, so that what is not there means something
        assert f"{B},{B}]" not in text and f"[{own},{B}]" not in text and f"[{B},{own}]" not in text, sizes
print("equal")
"""


def test_no_device_of_eight_holds_all_similarities(repo):
    """Values and gradients are those of the closed form, and compiled programs hold blocks of a device's rows alone."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")
