"""Kernels compiled ahead of time for TPUs at the shapes of 7B models; libtpu holds the compiler."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from alm_jax.audio import KaldiFbank, WhisperLogMel
from alm_jax.core.mesh import DEFAULT_RULES, MeshConfig, make_mesh
from alm_jax.kernels.attention import attention
from alm_jax.kernels.decode_attention import decode_attention
from alm_jax.kernels.int8_matmul import int8_matmul
from alm_jax.kernels.linear_cross_entropy import linear_cross_entropy
from alm_jax.kernels.window_attention import window_attention
from alm_jax.models.encoders.htsat import shift_regions
from alm_jax.train.chips import CHIPS, find_topology

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"),
]


@pytest.fixture(scope="module", autouse=True)
def _flags_of_libtpu():
    """It ends the process at a flag that its own XLA does not know, such as one of the CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield


def compiled(f, mesh, *arguments):
    """`f` of arrays (shape, dtype, logical axes), compiled; and its text before."""
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, DEFAULT_RULES.spec(axes)))
        for shape, dtype, axes in arguments
    ]
    with jax.set_mesh(mesh):
        lowered = jax.jit(f).lower(*shapes)
    return lowered.compile(), lowered.as_text()


def head(name, trains, dtype=jnp.bfloat16, rows=8, length=1024, width=4096, vocab=32000):
    loss = lambda h, k, t, w: linear_cross_entropy(h, k, t, w, implementation=name)
    rules = ("batch", None)
    arguments = [
        ((rows, length, width), jnp.bfloat16, (*rules, None)),
        ((width, vocab), dtype, ("embed", "vocab")),
        ((rows, length), jnp.int32, rules),
        ((rows, length), jnp.float32, rules),
    ]
    return jax.value_and_grad(loss, (0, 1) if trains else 0), arguments


@pytest.mark.slow
def test_cross_entropy_on_v5e():
    """`auto` takes the kernel, and a chip holds no logits of its tokens: 4 rows x 1024 x 16000 in float32."""
    mesh = make_mesh(MeshConfig(1, 2, 2), find_topology("v5e:2x2").devices)
    f, arguments = head("auto", trains=False)
    found, text = compiled(f, mesh, *arguments)
    assert "tpu_custom_call" in text
    assert found.memory_analysis().temp_size_in_bytes < 4 * 1024 * 16000 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.kind == "tpu"])
def test_cross_entropy_on_every_generation(name):
    topology = find_topology(CHIPS[name].example)
    mesh = make_mesh(MeshConfig(1, -1, 1), topology.devices)
    f, arguments = head("pallas_tpu", trains=True, dtype=jnp.float32, rows=len(topology.devices))
    compiled(f, mesh, *arguments)


@pytest.mark.parametrize("width", [pytest.param(64, marks=pytest.mark.slow), 128])
def test_splash_on_v5e(width):
    """`auto` takes it, forward and backward, grouped keys and all."""
    mesh = make_mesh(MeshConfig(1, 2, 2), find_topology("v5e:2x2").devices)

    def loss(q, k, v, ids):
        out = attention(q, k, v, q_segment_ids=ids, kv_segment_ids=ids, causal=True)
        return jnp.sum(out.astype(jnp.float32))

    heads = lambda count: ((4, 1024, count, width), jnp.bfloat16, ("batch", None, "heads", None))
    arguments = [heads(16), heads(4), heads(4), ((4, 1024), jnp.int32, ("batch", None))]
    found, text = compiled(jax.grad(loss, (0, 1, 2)), mesh, *arguments)
    assert "splash" in text
    assert found.memory_analysis().temp_size_in_bytes < 2 * 8 * 1024 * 1024 * 4  # scores of two rows and eight heads


@pytest.mark.parametrize("implementation", ["reference", "pallas_tpu"])
@pytest.mark.parametrize("axes", [("embed", "mlp"), pytest.param(("mlp", "embed"), marks=pytest.mark.slow)])
def test_int8_matmul_on_v5e(implementation, axes):
    """Forward and backward of a layer of 7B; no temporary is the kernel in bfloat16, of which a chip has half."""
    mesh = make_mesh(MeshConfig(1, 2, 2), find_topology("v5e:2x2").devices)
    sizes = dict(embed=4096, mlp=11008)

    def layer(x, codes, scale, dy):
        y, backward = jax.vjp(lambda x: int8_matmul(x, codes, scale, axes=axes, implementation=implementation), x)
        return y, backward(dy)

    rows = lambda axis: ((8, 1024, sizes[axis]), jnp.bfloat16, ("batch", None, None if axis == "embed" else axis))
    kernel = (tuple(sizes[axis] for axis in axes), jnp.int8, axes)
    scale = ((sizes[axes[1]],), jnp.float32, axes[1:])
    found, text = compiled(layer, mesh, rows(axes[0]), kernel, scale, rows(axes[1]))
    assert ("tpu_custom_call" in text) == (implementation == "pallas_tpu")
    gathered = 4096 * 11008 // 2
    activations = 2 * 4 * 1024 * 4096 * 2 if axes[0] == "mlp" else 0  # a sum over devices, and dy x scale
    assert found.memory_analysis().temp_size_in_bytes < gathered * 1.2 + activations


def front_end(name, frontend=KaldiFbank(), rows=8):
    arguments = [((rows, 160000), jnp.float32, ("batch", None)), ((rows,), jnp.int32, ("batch",))]
    return lambda waves, lengths: frontend.jax(waves, lengths, implementation=name), arguments


def decoding(name, rows=4, heads=32, kv_heads=8, slots=1024, width=128):
    def f(q, k, v, k_cache, v_cache, layer, ids):
        options = {"layer": layer, "q_segment_ids": ids[:, :1], "kv_segment_ids": ids, "implementation": name}
        return decode_attention(q, k, v, k_cache, v_cache, **options)

    q, new = (((rows, 1, count, width), jnp.bfloat16, ("batch", None, "heads", None)) for count in (heads, kv_heads))
    cache = ((4, rows, kv_heads, slots, width), jnp.bfloat16, (None, "batch", "kv_heads", None, None))
    return f, [q, new, new, cache, cache, ((), jnp.int32, ()), ((rows, slots), jnp.int32, ("batch", None))]


def windows(name, rows=4, edge=16, heads=4, width=24):
    regions = shift_regions(edge, edge, 8, 4)

    def loss(*arrays):
        out = window_attention(*arrays, jnp.asarray(regions), implementation=name)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    one = ((rows * len(regions), 64, heads, width), jnp.bfloat16, ("batch", None, "heads", None))
    return jax.grad(loss, (0, 1, 2, 3)), [one, one, one, ((heads, 64, 64), jnp.float32, ("heads", None, None))]


@pytest.mark.parametrize("call", [front_end, decoding, windows])
def test_auto_takes_the_kernel_on_v5e(call):
    """And copies nothing large: of a layer's keys alone a chip has 2 MiB."""
    mesh = make_mesh(MeshConfig(1, 2, 2), find_topology("v5e:2x2").devices)
    found, text = compiled(*_with(mesh, *call("auto")))
    assert "tpu_custom_call" in text
    assert found.memory_analysis().temp_size_in_bytes < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.kind == "tpu"])
def test_kernels_on_every_generation(name):
    topology = find_topology(CHIPS[name].example)
    mesh, rows = make_mesh(MeshConfig(1, -1, 1), topology.devices), len(topology.devices)
    compiled(*_with(mesh, *front_end("pallas_tpu", rows=rows)))
    compiled(*_with(mesh, *front_end("pallas_tpu", WhisperLogMel(), rows)))
    compiled(*_with(mesh, *decoding("pallas_tpu", rows)))
    compiled(*_with(mesh, *decoding("pallas_tpu", rows, heads=32, kv_heads=32)))
    compiled(*_with(mesh, *decoding("pallas_tpu", rows, heads=14, kv_heads=2, slots=192, width=64)))
    compiled(*_with(mesh, *windows("pallas_tpu", rows, edge=64)))
    compiled(*_with(mesh, *windows("pallas_tpu", rows, heads=16)))


def _with(mesh, f, arguments):
    return f, mesh, *arguments
