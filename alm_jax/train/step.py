"""The training step: `step(state, frozen, batch) -> (state, metrics)`, one compiled function on any mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.core import axes as ax
from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import constrain
from alm_jax.core.precision import Precision
from alm_jax.core.sequence import Batch
from alm_jax.core.tree import Arrays
from alm_jax.train.batches import plan_rows
from alm_jax.train.micro_batches import Division, cached, summed
from alm_jax.train.objectives import (
    Compared,
    LossGroup,
    Objective,
    next_token,
    normalised_weights,
    split_key,
)
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
            (and which masks dropout draws). Where rows are compared with each other it holds for what a row becomes by
            itself (`objectives.Compared`).
        mesh, state: the mesh and the abstract state with shardings, so that the new state lies as the old one.

    Returns:
        The step. Metrics, all scalars: `loss` and the parts that the objective has, `grad_norm` (before clipping),
        `learning_rate` (of this update), `tokens` (positions that are not padding).

    Raises (when traced):
        ConfigError: the rows of a batch are not divisible by `loss_group`, `micro_batch` or the devices.
    """

    dtype = jnp.dtype(precision.compute)

    def value_and_grad(params: Arrays, frozen: Arrays, batch: Batch, weight: jax.Array, key: jax.Array):
        """((value, parts), gradients)."""
        model = lambda params: tree.unflatten(like, {**frozen, **params})
        loss = lambda params, batch, weight, key: objective(model(params), batch, weight, key, dtype)
        whole = jax.value_and_grad(loss, has_aux=True)
        if micro_batch is None or micro_batch == batch.shape[0]:
            return whole(params, batch, weight, key)
        to = Division(batch.shape[0], micro_batch, mesh)
        if not isinstance(objective, Compared):
            return summed(whole, params, batch, weight, key, to)
        first, second = split_key(key)
        embed = lambda params, batch, key: objective.embed(model(params), batch, key, dtype)
        compare = lambda params, embedded: objective.loss(model(params), batch, embedded, weight, second)
        return cached(embed, compare, params, batch, first, to)

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        weight = group_weights(batch, loss_group, mesh)
        batch = with_frames(batch, like)
        (value, parts), grads = value_and_grad(state.params, frozen, batch, weight, key)
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
        batch = with_frames(batch, like)
        total, parts = objective(model, batch, batch.loss_weight, None, jnp.dtype(precision.compute))
        return {"loss": total, **parts, "targets": batch.loss_weight.sum()}

    return evaluate


def with_frames(batch: Batch, like: Any) -> Batch:
    """A batch of the clips' samples as one of their frames, by the front end of the model; any other as it is."""
    if batch.audio_samples is None:
        return batch
    rows, slots, n = batch.audio.shape
    frames = like.config.frontend.jax(batch.audio.reshape(rows * slots, n), batch.audio_samples.reshape(-1))
    frames = frames.reshape(rows, slots, *frames.shape[1:])
    frames = jnp.where(batch.audio_samples[..., None, None] > 0, frames, 0.0)  # as the host leaves an empty slot
    return replace(batch, audio=constrain(frames, ax.BATCH, None, None, None), audio_samples=None)


def group_weights(batch: Batch, loss_group: LossGroup, mesh: Mesh | None) -> jax.Array:
    """Loss weights [B, L] of a whole global batch (see `normalised_weights`)."""
    rows = batch.shape[0]
    size = rows if loss_group == "batch" else loss_group
    if rows % size:
        raise ConfigError(f"batch_size {rows} is not divisible by loss_group {size}")
    groups = jnp.asarray(plan_rows(mesh, rows) // size, jnp.int32)
    return normalised_weights(batch.loss_weight, groups, rows // size)
