"""Writing parameters under the names and in the layout of a checkpoint: the exact inverse of `convert.load`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax.convert.formats.safetensors import Tensor, write_safetensors
from alm_jax.convert.load import fold
from alm_jax.convert.names import PLAIN, Style, modules_with_lora
from alm_jax.convert.rules import Rule, Table
from alm_jax.convert.stream import Stored
from alm_jax.core.errors import CheckpointError
from alm_jax.core.files import partial_path

SHARD_BYTES = 5_000_000_000


def export(
    arrays: Mapping[str, Any], table: Table, style: Style = PLAIN, dead: Mapping[str, np.ndarray] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(key, contiguous array) of each of `tensors`, one at a time."""
    for tensor in tensors(arrays, table, style, dead):
        yield tensor.key, tensor.read()


def tensors(
    arrays: Mapping[str, Any], table: Table, style: Style = PLAIN, dead: Mapping[str, Any] | None = None
) -> Iterator[Tensor]:
    """Tensors under a checkpoint's names, with the values and dtypes of `arrays` bit for bit; no value is read yet.

    Args:
        arrays: `{path: array}` (or `Stored`, ...), all of a model's parameters or those to be written.
        table: the layout. style: the names.
        dead: tensors that no parameter takes, from `convert.load.dead`, by canonical name.

    Yields:
        Parameter by parameter; the dead tensors last.

    Raises:
        CheckpointError: a parameter or dead tensor is not in the table, or a packed tensor lacks a part.
    """
    dead = dead or {}
    packs = {names: rules for names, rules in table.packs.items() if any(rule.path in arrays for rule in rules)}
    _check_export(arrays, table, packs, dead)
    wrapped = modules_with_lora([key for names in packs for key in names])
    aliases: dict[str, list[str]] = {}
    for alias, key in table.tied if style.tied else ():
        aliases.setdefault(key, []).append(alias)
    for names, rules in packs.items():
        for layer, key in enumerate(names):
            for name in (key, *aliases.get(key, ())):
                yield _tensor(style.name(name, wrapped), rules, arrays, layer)
    for key, leaf in dead.items():
        yield as_tensor(style.name(key, wrapped), leaf)


def as_tensor(key: str, leaf: Any) -> Tensor:
    """An array (or `Stored`) under a name."""
    return Tensor(key, tuple(leaf.shape), np.dtype(leaf.dtype), lambda: iter([np.asarray(leaf)]))


def cast(tensor: Tensor, dtype: Any, beyond: list[str]) -> Tensor:
    """The tensor in another floating-point type; whole numbers stay. Keys with values beyond the type's range are
    added to `beyond` once they have been read."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype == dtype:
        return tensor

    def pieces() -> Iterator[np.ndarray]:
        for piece in tensor.pieces():
            with np.errstate(over="ignore"):
                values = piece.astype(dtype)
            if tensor.key not in beyond and (np.abs(values) == inf).any() and not (np.abs(piece) == inf).any():
                beyond.append(tensor.key)
            yield values

    return Tensor(tensor.key, tensor.shape, np.dtype(dtype), pieces)


def _check_export(arrays: Mapping[str, Any], table: Table, packs: Mapping, dead: Mapping) -> None:
    known = {rule.path for rule in table.rules}
    parts = [rule.path for rules in packs.values() for rule in rules if rule.path is not None]
    problems = {
        "parameters without a rule": [path for path in arrays if path not in known],
        "missing parameters of packed tensors": [path for path in parts if path not in arrays],
        "unknown dead tensors": [key for key in dead if key not in table.dead],
    }
    if any(problems.values()):
        lines = [f"{what}: {', '.join(fold(names))}" for what, names in problems.items() if names]
        raise CheckpointError("the model does not fit the layout: " + "; ".join(lines))


def _tensor(key: str, rules: tuple[Rule, ...], arrays: Mapping[str, Any], layer: int) -> Tensor:
    """The checkpoint tensor that the parameters of `rules` (its parts in order) make."""
    leaves = [None if rule.path is None else arrays[rule.path] for rule in rules]
    first = next(i for i, leaf in enumerate(leaves) if leaf is not None)
    rule, leaf = rules[first], leaves[first]
    shape = list(rule.arrange.undone.shape(leaf.shape[1:] if rule.stacked else leaf.shape))
    if rule.part is not None:
        shape[rule.part.axis] *= len(rules)
    dtype = leaf.dtype_of(layer) if rule.stacked and isinstance(leaf, Stored) else np.dtype(leaf.dtype)

    def part(rule: Rule, leaf: Any) -> np.ndarray:
        return rule.arrange.inverse(np.asarray(leaf[layer] if rule.stacked else leaf))

    def pieces() -> Iterator[np.ndarray]:
        if len(rules) > 1:
            parts = [None if leaf is None else part(rule, leaf) for rule, leaf in zip(rules, leaves)]
            yield np.concatenate([np.zeros_like(parts[first]) if p is None else p for p in parts], rule.part.axis)
        elif not rule.stacked and rule.arrange.source == rule.arrange.target and len(leaf.shape) > 2:
            for i in range(leaf.shape[0]):  # a stack of layers: one at a time
                yield np.asarray(leaf[i])[None].astype(dtype, copy=False)
        else:
            yield part(rule, leaf)

    return Tensor(key, tuple(shape), dtype, pieces)


def save_safetensors(
    folder: Path,
    tensors: Iterable[Tensor | tuple[str, np.ndarray]],
    *,
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `STEM.safetensors`, or shards and `STEM.safetensors.index.json` where one file would exceed `shard_bytes`.

    Files appear under their names once all of them are complete, the index last. The host holds one tensor, or a layer
    of it.

    Returns:
        The file to open: the single file or the index.

    Raises:
        CheckpointError: the folder has such files already, a key comes twice, or the disk refuses.
    """
    folder = Path(folder)
    files: dict[str, Path] = {}  # by the names that they will have
    try:
        shards = _shards([t if isinstance(t, Tensor) else as_tensor(*t) for t in tensors], shard_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        if existing := sorted(path.name for path in folder.glob(f"{stem}*.safetensors*")):
            raise CheckpointError(f"{folder} holds {', '.join(existing)} already; give an empty folder or remove them")
        one, count = f"{stem}.safetensors", len(shards)
        names = [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)] if count > 1 else [one]
        for name, shard in zip(names, shards):
            files[name] = partial_path(folder / name)
            write_safetensors(files[name], shard, {"format": "pt", **(metadata or {})})
        if count > 1:
            index = f"{one}.index.json"
            files[index] = partial_path(folder / index)
            files[index].write_text(_index(dict(zip(names, shards))), encoding="utf-8")
        _publish(folder, files)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write the checkpoint: {error}") from error
    finally:
        for partial in files.values():
            partial.unlink(missing_ok=True)
    return folder / next(reversed(files))


def _shards(tensors: Sequence[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    """Tensors in their order, as many in a shard as fit; one at least."""
    seen: set[str] = set()
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if tensor.key in seen:
            raise CheckpointError(f"the key {tensor.key} comes twice")
        seen.add(tensor.key)
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _index(contents: Mapping[str, Sequence[Tensor]]) -> str:
    total = sum(tensor.nbytes for shard in contents.values() for tensor in shard)
    weight_map = {tensor.key: name for name, shard in contents.items() for tensor in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)


def _publish(folder: Path, files: Mapping[str, Path]) -> None:
    """Give whole files their names, in order; none of them if one cannot have it."""
    try:
        for name, partial in files.items():
            os.replace(partial, folder / name)
    except OSError:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise
