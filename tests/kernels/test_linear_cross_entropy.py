"""Every implementation against the formula written out in float64, values and gradients; Pallas by the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.kernels.linear_cross_entropy import chunked, linear_cross_entropy, pallas_gpu, pallas_tpu
from alm_jax.kernels.linear_cross_entropy.head import Head

B, L, D = 2, 19, 128
FUSED = ["chunked", "pallas_tpu", "pallas_gpu"]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Several tiles along both sides, with padding behind the 38 tokens."""
    monkeypatch.setattr(chunked, "LOGITS", 0)
    monkeypatch.setattr(chunked, "ROWS", 16)
    monkeypatch.setattr(pallas_tpu, "_TOKENS", (16,))
    monkeypatch.setattr(pallas_tpu, "_VOCAB", 128)
    monkeypatch.setattr(pallas_gpu, "_TOKENS", 16)


def _inputs(vocab, dtype=np.float32):
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(B, L, D)), 0.3 * rng.normal(size=(D, vocab))
    targets, weight = rng.integers(0, vocab, (B, L)), rng.uniform(size=(B, L)) * (rng.uniform(size=(B, L)) < 0.7)
    targets[0, :2] = 0, vocab - 1
    return jnp.asarray(hidden, dtype), jnp.asarray(kernel, dtype), jnp.int32(targets), jnp.float32(weight)


def _written_out(hidden, kernel, targets, weight):
    """float64 loss, and its gradients for hidden, kernel and weight."""
    hidden, kernel, weight = (np.asarray(x, np.float64) for x in (hidden, kernel, weight))
    logits = hidden @ kernel
    chance = np.exp(logits - logits.max(-1, keepdims=True))
    chance /= chance.sum(-1, keepdims=True)
    said = np.take_along_axis(chance, np.asarray(targets)[..., None], -1)[..., 0]
    d_logits = (chance - np.eye(kernel.shape[1])[np.asarray(targets)]) * weight[..., None]
    grads = d_logits @ kernel.T, np.einsum("bld,blv->dv", hidden, d_logits), -np.log(said)
    return -(np.log(said) * weight).sum(), grads


def _run(name, hidden, kernel, targets, weight, vocab_axis=1):
    """Twice the loss, so that a gradient that does not heed what comes after it is found out."""
    options = {"vocab_axis": vocab_axis, "implementation": name, "interpret": True}
    turned = kernel if vocab_axis else kernel.T
    loss = lambda h, k, w: 2 * linear_cross_entropy(h, k, targets, w, **options)
    value, (d_hidden, d_kernel, d_weight) = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(hidden, turned, weight)
    only = jax.jit(loss)(hidden, turned, weight)
    assert d_hidden.dtype == hidden.dtype and d_kernel.dtype == kernel.dtype
    return (value, only), (d_hidden, d_kernel if vocab_axis else d_kernel.T, d_weight)


def _assert_equal(found, expected, tolerance):
    (value, only), grads = found
    np.testing.assert_allclose([value, only], 2 * expected[0], rtol=tolerance)
    for ours, theirs in zip(grads, expected[1]):
        ours = np.asarray(ours, np.float64)
        np.testing.assert_allclose(ours, 2 * theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize("name", ["reference", *FUSED])
def test_values_and_gradients(name, vocab_axis):
    """Where the vocabulary does not fill its tiles, too, if the implementation takes that."""
    inputs = _inputs(384 if name == "pallas_tpu" else 300)
    _assert_equal(_run(name, *inputs, vocab_axis), _written_out(*inputs), 1e-5)  # float32 sums of 128 and 38


@pytest.mark.parametrize("name", FUSED)
def test_bfloat16(name):
    """Products of bfloat16 numbers, float32 sums; the gradient of a logit is rounded to bfloat16 (2**-9)."""
    inputs = _inputs(256, jnp.bfloat16)
    _assert_equal(_run(name, *inputs), _written_out(*inputs), 1e-2)


@pytest.mark.parametrize("name", FUSED)
def test_a_frozen_kernel_has_no_gradient_made(name):
    hidden, kernel, targets, weight = _inputs(256)
    options = {"implementation": name, "interpret": True}
    loss = lambda h, k: linear_cross_entropy(h, k, targets, weight, **options)
    made = lambda wanted: str(jax.make_jaxpr(jax.grad(jax.jit(loss), wanted))(hidden, kernel)).count("dot_general")
    assert made(0) < made((0, 1))


def test_only_a_chunk_of_logits_is_held(monkeypatch):
    monkeypatch.setattr(chunked, "ROWS", 64)
    hidden, kernel = jnp.ones((4, 256, 64)), jnp.ones((64, 4096))
    targets, weight = jnp.zeros((4, 256), jnp.int32), jnp.ones((4, 256))

    def temporaries(name):
        loss = lambda h, k: linear_cross_entropy(h, k, targets, weight, implementation=name)
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 256 * 4096 * 4
    assert temporaries("reference") > logits > 2 * temporaries("chunked")


def test_refusals():
    hidden, kernel, targets, weight = _inputs(300)
    run = lambda h, k, name, **options: linear_cross_entropy(h, k, targets, weight, implementation=name, **options)
    for name, device in (("pallas_tpu", "TPU"), ("pallas_gpu", "GPU")):
        with pytest.raises(ConfigError, match=f"cross-entropy {name} cannot do this call: it needs a {device}"):
            run(hidden, kernel, name)
    with pytest.raises(ConfigError, match="multiples of 128 on each device, got 128 and 300"):
        run(hidden, kernel, "pallas_tpu", interpret=True)
    with pytest.raises(ConfigError, match="needs bfloat16 or float32, got float16"):
        run(hidden.astype(jnp.float16), kernel, "pallas_tpu", interpret=True)
    with pytest.raises(ConfigError, match="width 65536 do not fit the 12 MiB"):
        run(jnp.ones((B, L, 2**16)), jnp.ones((2**16, 128)), "pallas_tpu", interpret=True)
    with pytest.raises(ConfigError, match="multiple of 16, got 20"):
        run(hidden[..., :20], kernel[:20], "pallas_gpu", interpret=True)
    assert np.isfinite(run(hidden[..., :20], kernel[:20], "auto"))


@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_gpu_kernels_are_lowered_to_triton(vocab_axis, monkeypatch):
    """No GPU compiles or runs them here."""
    monkeypatch.setattr(pallas_gpu, "_TOKENS", 64)
    head = Head(vocab_axis)
    f = jax.jit(lambda *arrays: pallas_gpu.gradients(head, *arrays, True))
    shapes = [((100, 576), jnp.bfloat16), ((576, 1000), jnp.bfloat16), ((100,), jnp.int32), ((100,), jnp.float32)]
    arrays = [jax.ShapeDtypeStruct(shape if vocab_axis else shape[::-1], dtype) for shape, dtype in shapes]
    arrays[0] = jax.ShapeDtypeStruct(*shapes[0])
    text = f.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") >= 2
