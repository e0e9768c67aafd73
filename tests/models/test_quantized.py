"""Kernels in 8 and 4 bits: codes by hand and by search, products and gradients of layers over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense, Lora
from alm_jax.models.quantized import BLOCK, NF4, dequantize, quantize, quantized

STORAGES = ["int8", "nf4"]


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_int8_of_whole_numbers_is_exact():
    kernel = np.stack([np.arange(-127, 128), 2 * np.arange(-127, 128)[::-1]], 1).astype(np.float32)
    found = quantize(kernel, "int8")
    np.testing.assert_array_equal(found["scale"], [1, 2])
    np.testing.assert_array_equal(dequantize(**found, storage="int8"), kernel)


def test_int8_is_off_by_half_a_step_at_most():
    kernel = normal(3, 100, 40)  # a stack
    found = quantize(kernel, "int8")
    steps = np.abs(kernel).max(1, keepdims=True) / 127
    assert (np.abs(dequantize(**found, storage="int8") - kernel) <= steps * (0.5 + 1e-4)).all()  # float32 quotients


def test_nf4_gives_its_own_values_back_from_half_a_byte_each():
    block = np.array(NF4 * 4, np.float32)[:, None]
    kernel = np.concatenate([block, 3 * block[::-1], np.zeros((BLOCK, 1), np.float32)])
    found = quantize(kernel, "nf4")
    assert found["codes"].shape == (96, 1) and found["codes"].dtype == jnp.uint8
    np.testing.assert_array_equal(found["scale"][:, 0], [1, 3, 1])
    np.testing.assert_array_equal(found["codes"][:16, 0], [17 * code for code in range(16)])  # inputs r and r + 32
    np.testing.assert_array_equal(dequantize(**found, storage="nf4"), kernel)


def test_nf4_takes_the_nearest_value():
    kernel = normal(2, 2 * BLOCK, 5)
    blocks = kernel.reshape(2, 2, BLOCK, 5)
    scale = np.abs(blocks).max(2, keepdims=True)
    nearest = np.abs(blocks[..., None] / scale[..., None] - np.array(NF4)).argmin(-1)
    expected = (np.array(NF4, np.float32)[nearest] * scale).reshape(kernel.shape)
    np.testing.assert_allclose(dequantize(**quantize(kernel, "nf4"), storage="nf4"), expected, rtol=1e-6)


def test_nf4_takes_whole_blocks():
    with pytest.raises(ConfigError, match="blocks of 64, and a layer has 100: take int8"):
        quantize(normal(100, 8), "nf4")


def layers(storage):
    """Four stacked layers with LoRA, their kernels quantised, and the same with the kernels that this comes to."""
    make = lambda key: Dense(256, 256, key, axes=("embed", "mlp"), lora=Lora(targets=("*",)), std=0.03)
    plain = stack.build(make, jax.random.key(0), 4)
    plain.lora_b[...] = jnp.asarray(0.1 * normal(4, 8, 256))
    held = quantized(plain, ["kernel"], storage)
    plain.kernel[...] = dequantize(held.kernel.codes[...], held.kernel.scale[...], storage)
    return held, plain


def loss(layers, x):
    return jnp.sum(jnp.sin(stack.run(lambda layer, x, _: (x + layer(x), None), layers, x)[0]))


@pytest.mark.parametrize("storage", STORAGES)
def test_layers_are_those_of_the_dequantised_kernels(storage):
    held, plain = layers(storage)
    assert tree.logical_axes(held)["kernel.codes"] == ("layers", "embed", "mlp")
    x = normal(3, 256)

    def gradients(model):
        arrays = tree.flatten(model)
        trained, frozen = tree.split(arrays, ["lora_?"])
        run = lambda trained, x: loss(tree.unflatten(model, {**frozen, **trained}), x)
        return jax.jit(jax.value_and_grad(run, (0, 1)))(trained, x)

    ours, theirs = gradients(held), gradients(plain)

    def check(a, b):  # float32; the int8 product multiplies by the scale after it has summed
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())

    jax.tree.map(check, ours, theirs)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_backward_pass_keeps_codes_and_no_values(storage):
    held, _ = layers(storage)
    kept = jax.eval_shape(lambda x: jax.vjp(lambda x: loss(held, x), x)[1], normal(3, 256))
    leaves = jax.tree.leaves(kept)
    assert held.kernel.codes.shape in [leaf.shape for leaf in leaves]
    assert sum(leaf.size for leaf in leaves if leaf.dtype == jnp.float32) < 256 * 256  # one of four kernels
