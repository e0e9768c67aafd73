"""The training step: `step(state, frozen, batch) -> (state, metrics)`, one compiled function on any mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.core import mesh as meshes
from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.precision import Precision
from alm_jax.core.sequence import Batch
from alm_jax.core.tree import Arrays
from alm_jax.train.batches import plan_rows
from alm_jax.train.objectives import Loss, LossGroup, Objective, next_token, normalised_weights
from alm_jax.train.optim import Optimizer
from alm_jax.train.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Arrays, Batch], tuple[TrainState, Metrics]]


def make_step(
    like: Any,
    optimizer: Optimizer,
    precision: Precision,
    *,
    objective: Objective = next_token,
    loss_group: LossGroup = "batch",
    micro_batch: int | None = None,
    mesh: Mesh | None = None,
    state: TrainState | None = None,
) -> Step:
    """Compile-on-call training step; its first argument is donated.

    Args:
        like: the model, abstract or not; `{**frozen, **state.params}` are exactly its paths.
        loss_group: the loss is the mean over groups of this many consecutive rows of the plan of the mean over the
            targets of a group; `batch` is one group. The mesh does not change it.
        micro_batch: rows whose activations are held at a time, over all devices. Only memory and rounding depend on it
            (and which masks dropout draws).
        mesh, state: the mesh and the abstract state with shardings, so that the new state lies as the old one.

    Returns:
        The step. Metrics, all scalars: `loss` and the parts that the objective has, `grad_norm` (before clipping),
        `learning_rate` (of this update), `tokens` (positions that are not padding).

    Raises (when traced):
        ConfigError: the rows of a batch are not divisible by `loss_group`, `micro_batch` or the devices.
    """

    def loss(params: Arrays, frozen: Arrays, batch: Batch, weight: jax.Array, key: jax.Array) -> Loss:
        model = tree.unflatten(like, {**frozen, **params})
        return objective(model, batch, weight, key, jnp.dtype(precision.compute))

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        weight = group_weights(batch, loss_group, mesh)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if micro_batch is None or micro_batch == batch.shape[0]:
            (value, parts), grads = value_and_grad(state.params, frozen, batch, weight, key)
        else:
            total = _accumulate(value_and_grad, state.params, frozen, batch, weight, key, micro_batch, mesh)
            (value, parts), grads = total
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": value,
            **parts,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": optimizer.schedule(state.step),
            "tokens": jnp.sum(batch.kv_segment_ids != 0),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    out_shardings = None
    if mesh is not None and state is not None:
        out_shardings = (jax.tree.map(lambda leaf: leaf.sharding, state), NamedSharding(mesh, PartitionSpec()))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def make_eval_step(like: Any, precision: Precision, objective: Objective = next_token) -> Callable[..., Metrics]:
    """`evaluate(params, frozen, batch) -> {"loss": sum over targets, "targets": their number}`, without dropout; and
    the sums of the parts that the objective has."""

    @jax.jit
    def evaluate(params: Arrays, frozen: Arrays, batch: Batch) -> Metrics:
        model = tree.unflatten(like, {**frozen, **params})
        total, parts = objective(model, batch, batch.loss_weight, None, jnp.dtype(precision.compute))
        return {"loss": total, **parts, "targets": batch.loss_weight.sum()}

    return evaluate


def group_weights(batch: Batch, loss_group: LossGroup, mesh: Mesh | None) -> jax.Array:
    """Loss weights [B, L] of a whole global batch (see `normalised_weights`)."""
    rows = batch.shape[0]
    size = rows if loss_group == "batch" else loss_group
    if rows % size:
        raise ConfigError(f"batch_size {rows} is not divisible by loss_group {size}")
    groups = jnp.asarray(plan_rows(mesh, rows) // size, jnp.int32)
    return normalised_weights(batch.loss_weight, groups, rows // size)


def _accumulate(value_and_grad, params, frozen, batch, weight, key, size, mesh):
    """Sum of values and gradients over micro-batches of `size` rows, one at a time."""
    rows = batch.shape[0]
    shards = 1 if mesh is None else mesh.shape[meshes.DATA] * mesh.shape[meshes.FSDP]
    if rows % size or size % shards:
        raise ConfigError(
            f"micro_batch {size} has to divide batch_size {rows} and be a multiple of the {shards} devices along "
            "data and fsdp"
        )

    def divide(leaf: jax.Array) -> jax.Array:  # [B, ...] -> [n, size, ...]; every device keeps its rows
        parts = leaf.reshape(shards, rows // size, size // shards, *leaf.shape[1:])
        parts = parts.swapaxes(0, 1).reshape(rows // size, size, *leaf.shape[1:])
        if mesh is None:
            return parts
        spec = PartitionSpec(None, *meshes.batch_sharding(mesh).spec)
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, spec))

    def body(total, micro):
        index, (batch, weight) = micro
        result = value_and_grad(params, frozen, batch, weight, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    micros = (jnp.arange(rows // size), jax.tree.map(divide, (batch, weight)))
    first = jax.tree.map(lambda leaf: leaf[0], micros[1])
    parts = jax.eval_shape(value_and_grad, params, frozen, *first, key)[0]
    zero = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parts), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(body, zero, micros)[0]
