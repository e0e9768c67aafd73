"""What every open checkpoint file is held to."""

import numpy as np


def rand(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_same(file, expected):
    assert set(file.keys()) == set(expected)
    for key, value in expected.items():
        got = file.read(key)
        assert (file.shape(key), file.dtype(key)) == (value.shape, value.dtype), key
        assert (got.shape, got.dtype) == (value.shape, value.dtype), key
        np.testing.assert_array_equal(got, value)


def assert_slices(file, key):
    """Every kind of slice gives what slicing the whole tensor gives."""
    whole = file.read(key)
    cuts = [slice(None), slice(1, 3), slice(-2, None), slice(2, 1), slice(None, None, 2), slice(None, None, -1)]
    for index in [(c,) for c in cuts] + [(a, b) for a in cuts for b in cuts]:
        np.testing.assert_array_equal(file.read(key, index), whole[index], err_msg=str(index))
