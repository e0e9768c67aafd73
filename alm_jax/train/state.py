"""The state of training: what a step changes and a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.core.mesh import over_replicas
from alm_jax.core.tree import Arrays
from alm_jax.train.optim import Optimizer


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """Everything that a step updates; frozen weights are not part of it.

    Attributes:
        step: int32 scalar, updates done in this stage.
        params: trained parameters `{path: float32 array}`.
        opt_state: the optimiser's state.
        key: uint32 key data (`jax.random.key_data`), constant in a stage; a step draws from `fold_in(key, step)`.
    """

    step: Any
    params: Arrays
    opt_state: Any
    key: Any


def create_state(params: Arrays, optimizer: Optimizer, key: jax.Array) -> TrainState:
    """State before the first step of a stage. `key` is a typed JAX key. Trained parameters become float32."""
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in params.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.transform.init(params), jax.random.key_data(key))


def abstract_state(params: Arrays, optimizer: Optimizer, shardings: dict[str, NamedSharding], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state that trains `params` (arrays or `ShapeDtypeStruct`s).

    Optimiser statistics lie as the parameter they belong to, its replicas each with a share (`mesh.over_replicas`);
    scalars and the key are replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda p: create_state(p, optimizer, jax.random.key(0)), params)
    place = {path: shardings[path] for path in params}
    opt_state = optax.tree_map_params(
        optimizer.transform,
        lambda leaf, sharding: _placed(leaf, over_replicas(sharding, leaf.shape)),
        shapes.opt_state,
        place,
        transform_non_params=lambda leaf: _placed(leaf, replicated),
    )
    return TrainState(
        _placed(shapes.step, replicated),
        {path: _placed(leaf, place[path]) for path, leaf in shapes.params.items()},
        opt_state,
        _placed(shapes.key, replicated),
    )


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
