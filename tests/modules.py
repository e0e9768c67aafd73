"""Modules with random parameters that cost no compilation."""

import jax.numpy as jnp
import numpy as np

from alm_jax.core import tree


def randomised(make, std, seed=0):
    """What `make(key)` builds, its scales drawn by NumPy around 1, all else around 0."""
    like, rng = tree.abstract(make), np.random.default_rng(seed)
    draw = lambda path, leaf: path.endswith("scale") + std * rng.normal(size=leaf.shape)
    return tree.unflatten(like, {path: jnp.float32(draw(path, leaf)) for path, leaf in tree.flatten(like).items()})
