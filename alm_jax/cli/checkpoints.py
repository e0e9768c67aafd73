"""Reading a checkpoint by its own layout: shared by `alm inspect` and `alm convert`."""

from __future__ import annotations

from typing import Any

import jax

from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS, kind_of
from alm_jax.convert.load import contents, load
from alm_jax.convert.rules import Table
from alm_jax.core.errors import UsageError
from alm_jax.core.tree import Arrays
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.aligners.tltr import TltrConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig

# The encoder and aligner of the systems that have a published layout.
_SYSTEMS = {"ltu": (CavMaeConfig, PooledLinearConfig), "ltu_as": (WhisperConfig, TltrConfig)}


def open_checkpoint(name: str) -> TensorFile:
    """The tensors of a path or of a model's name, fetched if need be."""
    return open_tensors(resolve(name).path)


def layout_for(config: Any, arrays: Arrays) -> str:
    """The published layout of a part, or of a system with the parameters `arrays`.

    Raises:
        UsageError: there is none.
    """
    if isinstance(config, AlmConfig):
        fitting = [name for name, parts in _SYSTEMS.items() if parts == (type(config.encoder), type(config.aligner))]
    else:
        fitting = [name for name in ("llama_hf", "whisper_hf", "cav_mae") if isinstance(config, kind_of(name))]
    needed = {path for path in arrays if not path.startswith("encoder.")}
    for name in fitting:
        if needed <= {rule.path for rule in LAYOUTS[name].table(config).rules}:
            return name
    raise UsageError(f"no published layout holds this {type(config).__name__}; convert a --part of it")


def read_all(file: TensorFile, table: Table) -> Arrays:
    """All parameters that a file has, in its own dtypes.

    Raises:
        CheckpointError: a key that the table does not know, or a layer without one.
    """
    found = contents(file.keys(), table)
    target = {}
    for rule in table.rules:
        keys = [found.mapped[key] for key in rule.names if key in found.mapped]
        if keys and rule.path is not None:
            shape = rule.shape(file.shape(keys[0]))
            shape = (len(rule.names), *shape) if rule.stacked else shape
            target[rule.path] = jax.ShapeDtypeStruct(shape, file.dtype(keys[0]))
    return load(target, [(file, table)])
