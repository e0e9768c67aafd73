"""Window attention against the formula written out in float64, values and gradients; Pallas by the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.kernels.window_attention import pallas_tpu, window_attention

N, G, L, H, D = 4, 2, 16, 3, 8  # two pictures of two windows


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several steps of the grid, over which the bias's gradient is summed."""
    monkeypatch.setattr(pallas_tpu, "_WINDOWS", (2, 1))


def _inputs(masked, dtype=np.float32):
    rng = np.random.default_rng(0)
    q, k, v, wanted = (jnp.asarray(rng.normal(size=(N, L, H, D)), dtype) for _ in range(4))
    bias = jnp.float32(rng.normal(size=(H, L, L)))
    return (q, k, v, bias), jnp.int32(rng.integers(1, 4, (G, L))) if masked else None, wanted


def _written_out(arrays, regions, wanted):
    """float64 sum of the result x `wanted`, and its gradients for q, k, v and bias."""
    q, k, v, bias, wanted = (np.asarray(x, np.float64) for x in (*arrays, wanted))
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) * D**-0.5 + bias
    if regions is not None:
        regions = np.tile(regions, (N // G, 1))
        scores = np.where((regions[:, :, None] == regions[:, None])[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("nqhd,nkhd->nhqk", wanted, v)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    grads = (
        np.einsum("nhqk,nkhd->nqhd", d_scores, k) * D**-0.5,
        np.einsum("nhqk,nqhd->nkhd", d_scores, q) * D**-0.5,
        np.einsum("nhqk,nqhd->nkhd", weights, wanted),
        d_scores.sum(0),
    )
    return (np.einsum("nhqk,nkhd->nqhd", weights, v) * wanted).sum(), grads


@pytest.mark.parametrize(
    ("name", "masked", "dtype", "tolerance"),
    [
        ("reference", True, jnp.float32, 1e-5),
        ("pallas_tpu", True, jnp.float32, 1e-5),
        ("pallas_tpu", False, jnp.float32, 1e-5),
        ("pallas_tpu", True, jnp.bfloat16, 2e-2),  # products of numbers of 8 bits
    ],
)
def test_values_and_gradients(name, masked, dtype, tolerance):
    arrays, regions, wanted = _inputs(masked, dtype)

    def loss(*arrays):
        out = window_attention(*arrays, regions, implementation=name, interpret=True)
        return jnp.sum(out.astype(jnp.float32) * wanted.astype(jnp.float32))

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*arrays)
    expected = _written_out(arrays, regions, wanted)
    np.testing.assert_allclose(value, expected[0], rtol=tolerance, atol=10 * tolerance)  # a sum of both signs
    for ours, theirs, array in zip(grads, expected[1], arrays):
        assert ours.dtype == array.dtype
        np.testing.assert_allclose(np.float64(ours), theirs, atol=tolerance * np.abs(theirs).max())


def test_refusals():
    (q, _, _, bias), regions, _ = _inputs(True)
    run = lambda q, regions, **options: window_attention(q, q, q, bias, regions, implementation="pallas_tpu", **options)
    with pytest.raises(ConfigError, match="window attention pallas_tpu cannot do this call: it needs a TPU"):
        run(q, regions)
    with pytest.raises(ConfigError, match="multiple of 16 places, got 4"):
        run(q[:, :4], regions, interpret=True)
    with pytest.raises(ConfigError, match="a device has 3 windows, which are no whole pictures of 2"):
        run(q[:3], regions, interpret=True)
    with pytest.raises(ConfigError, match="needs bfloat16 or float32, got float16"):
        run(q.astype(jnp.float16), regions, interpret=True)
    with pytest.raises(ConfigError, match="one window of width 65536 does not fit the 12 MiB"):
        run(jnp.ones((2, 16, 1, 2**16)), None, interpret=True)
