"""Products with int8 kernels against float64 NumPy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.kernels.int8_matmul import int8_matmul, pallas_tpu


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Several tiles along all sides, with padding behind the rows."""
    monkeypatch.setattr(pallas_tpu, "_ROWS", (16,))
    monkeypatch.setattr(pallas_tpu, "_sides", lambda size: (128,))


def arrays(shape=(2, 5, 256), outputs=384, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=shape).astype(dtype), rng.normal(size=(*shape[:-1], outputs)).astype(dtype)
    codes = rng.integers(-127, 128, (shape[-1], outputs)).astype(np.int8)
    return x, codes, rng.uniform(0.5, 1.5, outputs).astype(np.float32) / 127, dy


def ours(x, codes, scale, dy, implementation):
    """The product, and its gradient for x where `dy` comes back."""
    options = {"implementation": implementation, "interpret": True}
    y, backward = jax.vjp(lambda x: int8_matmul(x, codes, scale, **options), x)
    return y, backward(dy)[0]


@pytest.mark.parametrize("implementation", ["reference", "pallas_tpu"])
@pytest.mark.parametrize("shape", [(2, 5, 256), (40, 128)])
def test_values_and_gradient(implementation, shape):
    x, codes, scale, dy = arrays(shape)
    kernel = codes.astype(np.float64) * scale
    y, dx = ours(x, codes, scale, dy, implementation)
    np.testing.assert_allclose(y, x @ kernel, atol=1e-4)  # float32 sums of 256 products of size 1
    np.testing.assert_allclose(dx, dy @ kernel.T, atol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "pallas_tpu"])
def test_in_bfloat16_only_inputs_and_results_are_rounded(implementation):
    x, codes, scale, dy = arrays(dtype=jnp.bfloat16)
    y, dx = ours(x, codes, scale, dy, implementation)
    assert y.dtype == dx.dtype == jnp.bfloat16
    kernel, wide = codes.astype(np.float64) * scale, np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(y, np.float64), wide @ kernel, rtol=2**-8, atol=1e-3)  # codes are exact
    expected = np.asarray(dy, np.float64) @ kernel.T
    np.testing.assert_allclose(np.asarray(dx, np.float64), expected, atol=2**-7 * np.abs(expected).max())  # dy x scale


def test_the_kernel_gets_no_gradient():
    x, codes, scale, _ = arrays()
    assert not np.any(jax.grad(lambda scale: int8_matmul(x, codes, scale).sum())(scale))


def test_refusals():
    x, codes, scale, _ = arrays()
    with pytest.raises(ConfigError, match="needs a TPU, the platform is cpu"):
        int8_matmul(x, codes, scale, implementation="pallas_tpu")
    with pytest.raises(ConfigError, match="multiples of 128 on each device, got 256 x 100"):
        int8_matmul(x, codes[:, :100], scale[:100], implementation="pallas_tpu", interpret=True)
    with pytest.raises(ConfigError, match="bfloat16 or float32, got float16"):
        int8_matmul(x.astype(np.float16), codes, scale, implementation="pallas_tpu", interpret=True)
