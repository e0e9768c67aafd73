"""Which model a checkpoint is of, read off its tensors: shared by `alm inspect` and `alm convert`."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.load import contents, load
from alm_jax.convert.rules import Table
from alm_jax.core.errors import UsageError
from alm_jax.core.tree import Arrays
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import ltu


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return (path / "config.json").is_file() and (path / "stages").is_dir()


def open_checkpoint(name: str) -> TensorFile:
    """The tensors of a path or of a model's name, fetched if need be."""
    return open_tensors(resolve(name).path)


def kind_of(layout: str) -> type:
    """The class of config that a layout's table is made from."""
    return typing.get_type_hints(LAYOUTS[layout].table)["config"]


def layout_for(config: Any, arrays: Arrays) -> str:
    """The published layout of a part or system, for the aligner that `arrays` hold.

    Raises:
        UsageError: there is none.
    """
    needed = {path for path in arrays if not path.startswith("encoder.")}
    for name in ("llama_hf", "whisper_hf", "cav_mae", "ltu", "ltu_as"):
        if isinstance(config, kind_of(name)) and needed <= {rule.path for rule in LAYOUTS[name].table(config).rules}:
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


def config_of(file: TensorFile, layout: str) -> Any:
    """A config with the file's number of layers, and what else a table depends on; sizes are the defaults."""
    return _structure(file, kind_of(layout))


def _structure(file: TensorFile, kind: type) -> Any:
    keys = list(file.keys())
    if kind is LlamaConfig:
        return _llama(file, keys)
    if kind is WhisperConfig:
        return WhisperConfig(depth=_count(keys, r"(?:^|encoder[./])(?:layers\.|blocks\.|layer_)(\d+)[./]"))
    cav_mae = CavMaeConfig()
    joint = _count(keys, r"blocks_u\.(\d+)\.")
    if joint:
        cav_mae = dataclasses.replace(cav_mae, depth=_count(keys, r"blocks_a\.(\d+)\.") + joint, joint_depth=joint)
    if kind is CavMaeConfig:
        return cav_mae
    # A system's table asks nothing of its config but these two parts.
    return ltu(_llama(file, keys), cav_mae)


def _llama(file: TensorFile, keys: Iterable[str]) -> LlamaConfig:
    config = LlamaConfig(
        depth=_count(keys, r"(?<!encoder\.)(?:layers|blk)\.(\d+)\."),
        tie_embeddings=not any(re.search(r"(lm_head|^output)\.weight$", key) for key in keys),
    )
    heads = {name: file.metadata.get(f"llama.attention.head_count{name}") for name in ("", "_kv")}
    if heads[""]:  # GGUF, which orders the rows of each head in its own way
        config = dataclasses.replace(config, heads=int(heads[""]), kv_heads=int(heads["_kv"] or heads[""]))
    return config


def _count(keys: Iterable[str], pattern: str) -> int:
    found = [int(match[1]) for key in keys if (match := re.search(pattern, key))]
    return max(found, default=-1) + 1
