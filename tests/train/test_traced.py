"""Counts of jaxprs against closed forms."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from alm_jax.train.traced import Work, most_held, work

ROWS, WIDTH, DEPTH = 8, 16, 5
X = jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32)
W = jax.ShapeDtypeStruct((WIDTH, WIDTH), np.float32)
STACK = jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), np.float32)
PRODUCT = 2 * ROWS * WIDTH * WIDTH
MOVED = 4 * (2 * ROWS * WIDTH + WIDTH * WIDTH)
VALUE, WEIGHT = 4 * ROWS * WIDTH, 4 * WIDTH * WIDTH


def traced(f, *shapes):
    return jax.make_jaxpr(f)(*shapes).jaxpr


def size(value):
    return prod(value.shape) * value.dtype.itemsize


def layers(x, stack):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]


def test_products():
    assert work(traced(jnp.matmul, X, W)) == Work(PRODUCT, 0, MOVED)
    assert work(traced(layers, X, STACK)) == Work(DEPTH * PRODUCT, 0, DEPTH * MOVED)
    # forward; then the gradients of both factors
    assert work(traced(jax.grad(lambda w, x: layers(x, w).sum()), STACK, X)).flops == 3 * DEPTH * PRODUCT
    # and forward once more
    body = jax.checkpoint(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w), None))
    deep = lambda w, x: jax.lax.scan(body, x, w)[0].sum()
    assert work(traced(jax.grad(deep), STACK, X)).flops == (2 + 4 + 2) * DEPTH * PRODUCT
    grouped = lambda x, k: jax.lax.conv_general_dilated(x, k, (2,), "VALID", feature_group_count=4)
    image, kernel = np.zeros((3, 8, 21), np.float32), np.zeros((12, 2, 5), np.float32)
    assert work(traced(grouped, image, kernel)).flops == 2 * 3 * 12 * 9 * (2 * 5)


def test_branches_and_devices():
    branches = lambda x, w: jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
    assert work(traced(branches, X, W)).flops == 2 * PRODUCT
    devices = jax.sharding.AbstractMesh((4,), ("data",))
    parts = jax.shard_map(jnp.matmul, mesh=devices, in_specs=(P("data"), P()), out_specs=P("data"))
    assert work(traced(parts, X, W)).flops == PRODUCT


def test_kernels():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    blocks = lambda *shape: pl.BlockSpec(shape, lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[blocks(ROWS // 4, WIDTH), pl.BlockSpec((WIDTH, WIDTH), lambda i: (0, 0))],
        out_specs=blocks(ROWS // 4, WIDTH),
        out_shape=jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32),
    )
    assert work(traced(lambda x, w: call(x, w) @ w, X, W)) == Work(2 * PRODUCT, PRODUCT, MOVED)


def test_values_that_are_held():
    # of a chain two at a time, of a fan all until they are summed
    chain = lambda x: jnp.sin(jnp.cos(jnp.tan(x)))
    assert most_held(traced(chain, X), size) == 2 * VALUE
    fan = lambda x: (lambda a, b, c: a + (b + c))(jnp.sin(x), jnp.cos(x), jnp.tan(x))
    assert most_held(traced(fan, X), size) == 4 * VALUE
    # a scan's stacked results, and in its body a slice, a product and its tanh
    kept = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w),) * 2, x, w)
    assert most_held(traced(kept, X, STACK), size) == (1 + DEPTH) * VALUE + WEIGHT + 2 * VALUE
