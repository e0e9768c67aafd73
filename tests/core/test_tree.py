"""Flat dictionaries of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.layers import stack
from alm_jax.layers.dense import Dense, Lora


class Two(nnx.Module):
    def __init__(self, key):
        self.first = Dense(3, 4, key, axes=("embed", "mlp"), lora=Lora(rank=2))
        self.nothing = None
        self.blocks = stack.build(lambda k: Dense(4, 4, k, axes=("mlp", "mlp"), bias=False), key, 5)


@pytest.fixture
def module():
    return Two(jax.random.key(0))


def test_paths_in_order_and_back(module):
    flat = tree.flatten(module)
    assert sorted(flat) == ["blocks.kernel", "first.bias", "first.kernel", "first.lora_a", "first.lora_b"]
    assert flat["blocks.kernel"].shape == (5, 4, 4)
    doubled = tree.unflatten(module, {path: 2 * leaf for path, leaf in flat.items()})
    np.testing.assert_array_equal(doubled.first.kernel[...], 2 * module.first.kernel[...])


def test_abstract_has_the_same_structure_without_arrays(module):
    shapes = tree.abstract(Two)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in tree.flatten(shapes).values())
    assert jax.tree.structure(shapes) == jax.tree.structure(module)


def test_axes_name_stacked_layers(module):
    axes = tree.logical_axes(module)
    assert axes["blocks.kernel"] == ("layers", "mlp", "mlp")
    assert axes["first.lora_a"] == ("embed", "lora")


def test_axes_survive_a_round_trip(module):
    again = tree.unflatten(tree.abstract(Two), tree.flatten(module))
    assert tree.logical_axes(again) == tree.logical_axes(module)


def test_a_parameter_without_axes_is_an_error(module):
    module.first.bias = nnx.Param(jnp.zeros(4))
    with pytest.raises(ConfigError, match=r"first\.bias"):
        tree.logical_axes(module)


def test_unflatten_lists_what_does_not_fit(module):
    flat = tree.flatten(module)
    del flat["first.bias"]
    flat["second.bias"] = 0
    with pytest.raises(ConfigError, match=r"missing \['first\.bias'\], unknown \['second\.bias'\]"):
        tree.unflatten(module, flat)


def test_split_is_disjoint_and_exhaustive(module):
    flat = tree.flatten(module)
    chosen, rest = tree.split(flat, ("*.lora_?",))
    assert set(chosen) == {"first.lora_a", "first.lora_b"}
    assert set(chosen) | set(rest) == set(flat) and not set(chosen) & set(rest)


def test_split_refuses_a_pattern_that_fits_nothing(module):
    with pytest.raises(ConfigError, match="frist"):
        tree.split(tree.flatten(module), ("frist.*", "blocks.*"))
