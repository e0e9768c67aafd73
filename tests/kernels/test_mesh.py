"""Kernels on eight host devices, rows and heads or vocabulary divided, against one device."""

import subprocess
import sys

from tests.devices import host_devices

EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from alm_jax.core import mesh as meshes
from alm_jax.core.errors import ConfigError
from alm_jax.kernels.attention import splash
from alm_jax.kernels.linear_cross_entropy import linear_cross_entropy

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
hidden, kernel, weight = normal(8, 6, 128), 0.3 * normal(128, 512), rng.uniform(size=(8, 6)).astype(np.float32)
targets = rng.integers(0, 512, (8, 6), np.int32)
q, k, v = normal(4, 128, 4, 64), normal(4, 128, 2, 64), normal(4, 128, 2, 64)
ids = rng.integers(1, 3, (4, 128), np.int32)

def loss(name, axis):
    options = {"vocab_axis": axis, "implementation": name, "interpret": True}
    return lambda h, k: linear_cross_entropy(h, k, targets, weight, **options)

def attend(q, k, v):
    out = splash.attention(q, k, v, q_segment_ids=ids, kv_segment_ids=ids, causal=True, interpret=True)
    return jnp.sum(out * jnp.arange(64.0))

def run(sizes, devices):
    mesh, found = meshes.make_mesh(meshes.MeshConfig(*sizes), jax.devices()[:devices]), {}
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, meshes.DEFAULT_RULES.spec(axes)))
    with jax.set_mesh(mesh):
        rows = put(hidden, "batch", None, None)
        for name in ("reference", "chunked", "pallas_tpu", "pallas_gpu"):
            for axis, table in ((1, put(kernel, "embed", "vocab")), (0, put(kernel.T, "vocab", "embed"))):
                found[name, axis] = jax.jit(jax.value_and_grad(loss(name, axis), (0, 1)))(rows, table)
        heads = [put(x, "batch", None, "heads", None) for x in (q, k, v)]
        found["splash"] = jax.jit(jax.value_and_grad(attend, (0, 1, 2)))(*heads)
        if devices > 1:
            d_kernel = found["chunked", 1][1][1]
            assert d_kernel.sharding.is_equivalent_to(put(kernel, "embed", "vocab").sharding, 2), d_kernel.sharding
            assert "devices along batch, which do not divide 7" in meshes.indivisible((7,), ("batch",))
            assert np.isfinite(linear_cross_entropy(hidden[:7], kernel, targets[:7], weight[:7]))  # the reference
    return found

one, eight = run((1, 1, 1), 1), run((2, 2, 2), 8)
for name, expected in one.items():
    def check(ours, theirs):  # sums in another order, and softmax over parts of the vocabulary
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max(), err_msg=str(name))

    jax.tree.map(check, eight[name], expected)
print("equal", len(one))
"""


def test_eight_devices_give_the_values_and_gradients_of_one(repo):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal 9")
