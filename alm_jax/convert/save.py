"""Writing parameters under the names and in the layout of a checkpoint: the exact inverse of `convert.load`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.convert.load import fold
from alm_jax.convert.names import PLAIN, Style, modules_with_lora
from alm_jax.convert.rules import Rule, Table
from alm_jax.core.errors import CheckpointError


def export(
    arrays: Mapping[str, Any], table: Table, style: Style = PLAIN, dead: Mapping[str, np.ndarray] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under a checkpoint's names, one at a time, with the values and dtypes of `arrays` bit for bit.

    Args:
        arrays: `{path: array}`, all of a model's parameters or those to be written.
        table: the layout. style: the names.
        dead: tensors that no parameter takes, from `convert.load.dead`, by canonical name.

    Yields:
        (key, contiguous array), parameter by parameter; the dead tensors last.

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
            tensor = np.asarray(_tensor(rules, arrays, layer), order="C")
            for name in (key, *aliases.get(key, ())):
                yield style.name(name, wrapped), tensor
    for key, tensor in dead.items():
        yield style.name(key, wrapped), tensor


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


def _tensor(rules: tuple[Rule, ...], arrays: Mapping[str, Any], layer: int) -> np.ndarray:
    """The checkpoint tensor that the parameters of `rules` (its parts in order) make."""

    def part(rule: Rule) -> np.ndarray:
        leaf = arrays[rule.path]
        return rule.arrange.inverse(np.asarray(leaf[layer] if rule.stacked else leaf))

    if len(rules) == 1:
        return part(rules[0])
    parts = [None if rule.path is None else part(rule) for rule in rules]
    like = next(values for values in parts if values is not None)
    return np.concatenate([np.zeros_like(like) if values is None else values for values in parts], rules[0].part.axis)


def save_safetensors(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    stem: str = "model",
    shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `STEM.safetensors`, or shards and `STEM.safetensors.index.json` where one file would exceed `shard_bytes`.

    Files appear under their names once all of them are complete, the index last. The host holds one shard.

    Returns:
        The file to open: the single file or the index.

    Raises:
        CheckpointError: the folder has such files already, a key comes twice, or the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = Path(folder)
    written: list[tuple[Path, list[str]]] = []
    total = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if existing := sorted(path.name for path in folder.glob(f"{stem}*.safetensors*")):
            raise CheckpointError(f"{folder} holds {', '.join(existing)} already; give an empty folder or remove them")
        for shard in _shards(tensors, shard_bytes):
            part = folder / f".{stem}-{len(written):05}.{os.getpid()}.partial"
            written.append((part, list(shard)))
            total += sum(tensor.nbytes for tensor in shard.values())
            save_file(shard, part, metadata={"format": "pt", **(metadata or {})})
            part.chmod(folder.stat().st_mode & 0o666)  # safetensors leaves it readable by its owner alone
        return _publish(folder, stem, written, total)
    except (OSError, SafetensorError) as error:  # a full disk is the latter
        raise CheckpointError(f"{folder}: cannot write the checkpoint: {error}") from error
    finally:
        for part, _ in written:
            part.unlink(missing_ok=True)


def _shards(tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    seen: set[str] = set()
    shard: dict[str, np.ndarray] = {}
    size = 0
    for key, tensor in tensors:
        if key in seen:
            raise CheckpointError(f"the key {key} comes twice")
        seen.add(key)
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[key] = np.asarray(tensor, order="C")
        size += tensor.nbytes
    yield shard


def _publish(folder: Path, stem: str, written: list[tuple[Path, list[str]]], total: int) -> Path:
    count = len(written)
    names = [
        f"{stem}-{n:05}-of-{count:05}.safetensors" if count > 1 else f"{stem}.safetensors" for n in range(1, count + 1)
    ]
    placed = [folder / name for name in names]
    index = folder / f"{stem}.safetensors.index.json"
    part = folder / f".{index.name}.{os.getpid()}.partial"
    try:
        for (shard, _), path in zip(written, placed):
            os.replace(shard, path)
        if count == 1:
            return placed[0]
        weight_map = {key: name for (_, keys), name in zip(written, names) for key in keys}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        part.write_text(json.dumps(content, indent=2), encoding="utf-8")
        os.replace(part, index)
        return index
    except OSError:
        for path in (*placed, part):
            path.unlink(missing_ok=True)
        raise
