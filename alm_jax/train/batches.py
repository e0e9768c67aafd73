"""Batches on a mesh: which rows a process loads, and the global arrays made from every process's part."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh

from alm_jax.core import mesh as meshes
from alm_jax.core.errors import ConfigError


def meet(name: str) -> None:
    """Wait until all processes are here, so that what one has looked for another may write."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def place(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch (a tree of NumPy arrays) as global arrays, rows divided over the mesh."""
    sharding = meshes.batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def check_rows(mesh: Mesh | AbstractMesh, name: str, rows: int) -> None:
    """
    Raises:
        ConfigError: the devices that rows are divided over do not divide so many; the message names them `name`.
    """
    devices = mesh.shape[meshes.DATA] * mesh.shape[meshes.FSDP]
    if rows % devices:
        raise ConfigError(
            f"{name} {rows} is not a multiple of the {devices} devices along data and fsdp: set it to one, or give "
            "devices to mesh.tensor or mesh.context"
        )


def data_process(mesh: Mesh, rows: int) -> tuple[int, int]:
    """(index, count) of the block of a global batch's rows that this process loads.

    Processes that hold the same rows (a model divided over several) load the same block.
    """
    held = process_rows(mesh, rows)
    parts = sorted(set(held.values()))
    return parts.index(held[jax.process_index()]), len(parts)


def plan_rows(mesh: Mesh | None, rows: int) -> np.ndarray:
    """Which row of the plan each row of the assembled global batch is: int [rows].

    Each process loads a block of consecutive rows of the plan into the part of the global array that its devices hold.
    The assembled order is the plan's unless the mesh interleaves the devices of several processes.
    """
    if mesh is None:
        return np.arange(rows)
    parts = sorted(set(process_rows(mesh, rows).values()))
    return np.argsort(np.concatenate(parts), kind="stable")


def process_rows(mesh: Mesh, rows: int) -> dict[int, tuple[int, ...]]:
    """`{process: global rows that its devices hold}`; processes that hold the same rows are to load the same data.

    Raises:
        ConfigError: rows are not divisible by the devices, or processes hold overlapping, unequal parts.
    """
    check_rows(mesh, "data.batch_size", rows)
    sharding = meshes.batch_sharding(mesh)
    held: dict[int, set[int]] = {}
    for device, (part, *_) in sharding.devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*part.indices(rows)))
    return distinct_parts(held, rows)


def distinct_parts(held: dict[int, set[int]], rows: int) -> dict[int, tuple[int, ...]]:
    """Rows of every process in order, checked to be equal or disjoint between processes, and equally many.

    Raises:
        ConfigError: they are not.
    """
    parts = {process: tuple(sorted(part)) for process, part in held.items()}
    distinct = set(parts.values())
    if sum(map(len, distinct)) != rows or len(set(map(len, distinct))) != 1:
        raise ConfigError("mesh divides a batch unevenly over processes; put whole processes along data or fsdp")
    return parts
