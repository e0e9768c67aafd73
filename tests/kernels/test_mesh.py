"""Kernels on eight host devices, rows and heads, vocabulary or positions divided, against references on one device."""

import subprocess
import sys

from tests.devices import host_devices

EIGHT = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding
from alm_jax.audio import KaldiFbank
from alm_jax.core import mesh as meshes
from alm_jax.kernels.attention import attention, splash
from alm_jax.kernels.attention.rows import whole_rows
from alm_jax.kernels.decode_attention import decode_attention
from alm_jax.kernels.int8_matmul import int8_matmul
from alm_jax.kernels.linear_cross_entropy import linear_cross_entropy
from alm_jax.kernels.window_attention import window_attention

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
hidden, kernel, weight = normal(8, 2, 128), 0.3 * normal(128, 256), rng.uniform(size=(8, 2)).astype(np.float32)
targets = rng.integers(0, 256, (8, 2), np.int32)
q, k, v = normal(4, 128, 4, 64), normal(4, 128, 2, 64), normal(4, 128, 2, 64)
ids = rng.integers(1, 3, (4, 128), np.int32)
windows, bias, regions = normal(8, 16, 2, 8), normal(2, 16, 16), rng.integers(1, 3, (2, 16), np.int32)
cache, filled = normal(2, 4, 2, 64, 64), np.int32(np.arange(64) >= 9 * np.arange(4)[:, None])
waves = normal(4, 2000)
codes, scale = rng.integers(-127, 128, (256, 512)).astype(np.int8), rng.uniform(size=512).astype(np.float32)
narrow, wide = normal(8, 6, 256), normal(8, 6, 512)

def head(axis, name):
    options = {"vocab_axis": axis, "implementation": name, "interpret": True}
    loss = lambda h, k: linear_cross_entropy(h, k, targets, weight, **options)
    table = (kernel, "embed", "vocab") if axis else (kernel.T, "vocab", "embed")
    return jax.value_and_grad(loss, (0, 1)), [(hidden, "batch", None, None), table]

def attend(name):
    seen = {"q_segment_ids": ids, "kv_segment_ids": ids, "causal": True}
    run = lambda *x: splash.attention(*x, **seen, interpret=True) if name == "splash" else attention(*x, **seen)
    loss = lambda *x: jnp.sum(run(*x) * jnp.arange(64.0))
    return jax.value_and_grad(loss, (0, 1, 2)), [(x, "batch", None, "heads", None) for x in (q, k, v)]

def in_windows(name):
    def loss(x, bias):
        out = window_attention(x, 0.5 * x, x, bias, jnp.asarray(regions), implementation=name, interpret=True)
        return jnp.sum(out * jnp.arange(8.0))

    return jax.value_and_grad(loss, (0, 1)), [(windows, "batch", None, "heads", None), (bias, "heads", None, None)]

def decode(name):
    options = {"layer": 1, "q_segment_ids": filled[:, -1:], "kv_segment_ids": filled}
    run = lambda q, k, c: decode_attention(q, k, k, c, c, **options, implementation=name, interpret=True)
    rows = [(x[:, :1], "batch", None, "heads", None) for x in (q, k)]
    return run, [*rows, (cache, None, "batch", "kv_heads", None, None)]

def log_mel(name):
    run = lambda waves: KaldiFbank(frames=16).jax(waves, jnp.full(4, 2000), implementation=name, interpret=True)
    return run, [(waves, "batch", None)]

def multiply(axes, name):  # columns divided, or rows; forward and backward
    def f(x, codes, scale, dy):
        options = {"axes": axes, "implementation": name, "interpret": True}
        y, backward = jax.vjp(lambda x: int8_matmul(x, codes, scale, **options), x)
        return y, backward(dy)[0]

    rows = [(x, "batch", None, "mlp" if axis == "mlp" else None) for x, axis in zip((narrow, wide), axes)]
    return f, [rows[0], (codes, *axes), (scale, axes[1]), rows[1]]

def run(call, **sizes):
    devices = int(np.prod([*sizes.values()]))
    mesh = meshes.make_mesh(meshes.MeshConfig(**sizes), jax.devices()[:devices])
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, meshes.DEFAULT_RULES.spec(axes)))
    with jax.set_mesh(mesh):
        f, arguments = call
        return jax.jit(f)(*(put(*argument) for argument in arguments))

def check(ours, theirs):  # sums in another order, and softmax over parts of the vocabulary
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())

calls = [
    (partial(head, 0), ["pallas_tpu", "chunked"]),
    (partial(head, 1), ["pallas_gpu", "chunked"]),
    (attend, ["splash"]),
    *[(call, ["pallas_tpu"]) for call in (in_windows, decode, log_mel)],
    *[(partial(multiply, axes), ["reference", "pallas_tpu"]) for axes in (("embed", "mlp"), ("mlp", "embed"))],
]
# Positions over two devices: heads divide by them, or (two of keys, by tensor 2 x context 2) do not.
positions = [{"data": 2, "fsdp": 2, "tensor": 1, "context": 2}, {"data": 1, "fsdp": 2, "tensor": 2, "context": 2}]
for call, names in calls:
    expected = run(call("reference"), data=1, fsdp=1, tensor=1)
    for name in names:
        found = run(call(name), data=2, fsdp=2, tensor=2)
        jax.tree.map(check, found, expected)
    for sizes in positions if names[-1] in ("chunked", "splash") else []:
        jax.tree.map(check, run(call(names[-1]), **sizes), expected)
    if call is calls[1][0]:
        assert found[1][1].sharding.spec == meshes.DEFAULT_RULES.spec(("embed", "vocab")), found[1][1].sharding
    print("equal", *names)

with jax.set_mesh(meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))):
    assert "devices along batch, which do not divide 7" in meshes.indivisible((7,), ("batch",))
    assert np.isfinite(linear_cross_entropy(hidden[:7], kernel, targets[:7], weight[:7]))  # the reference
for sizes in positions:
    with jax.set_mesh(meshes.make_mesh(meshes.MeshConfig(**sizes))):
        assert whole_rows(q, k)[0][2] == ("row_heads" if sizes["tensor"] == 1 else "heads")
print("done")
"""


def test_eight_devices_give_the_values_and_gradients_of_one(repo):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 8 and done.stdout.endswith("done\n")
