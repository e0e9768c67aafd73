"""Reading checkpoints into a model's parameters: checked as a whole first, then streamed (`convert.stream`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.names import Style, style_of
from alm_jax.convert.rules import Table
from alm_jax.convert.stream import Fill, Stored, read
from alm_jax.core.errors import CheckpointError
from alm_jax.core.tree import matches

Source = tuple[TensorFile, Table]
_PROBE = 64  # leading rows by which two tensors that should be tied are compared


@dataclass(frozen=True)
class Beginning:
    """How another model's checkpoint begins a part.

    Attributes:
        tables: together they read the file; more than one where it fills several parameters with a tensor.
        lacks: patterns of parameters that it does not hold. grows: paths of which it may hold the first rows alone.
    """

    tables: tuple[Table, ...]
    lacks: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """A file's keys by what a table makes of them; each maps a canonical name to the file's own.

    Attributes:
        style: how the file names its keys.
        mapped: tensors that make parameters. tied: tensors that repeat another. dead: tensors that are never used.
        ignored: tensors of another model. unmapped: tensors that the table does not know.
        twice: keys of the file that have the canonical name of another.
    """

    style: Style
    mapped: dict[str, str]
    tied: dict[str, str]
    dead: dict[str, str]
    ignored: dict[str, str]
    unmapped: dict[str, str]
    twice: tuple[str, ...]


def contents(keys: Iterable[str], table: Table) -> Contents:
    """Sort a file's keys by what `table` makes of them."""
    keys = list(keys)
    style = style_of(keys, table)
    known = {key for names in table.packs for key in names}
    tied, dead = {alias for alias, _ in table.tied}, set(table.dead)
    found = Contents(style, {}, {}, {}, {}, {}, ())
    seen, twice = set(), []
    for raw in keys:
        key = style.canonical(raw)
        if key in seen:
            twice.append(raw)
            continue
        seen.add(key)
        if key in known:
            group = found.mapped
        elif key in tied:
            group = found.tied
        elif key in dead:
            group = found.dead
        else:
            group = found.ignored if matches(key, table.ignored) else found.unmapped
        group[key] = raw
    return Contents(**vars(found) | {"twice": tuple(twice)})


def check(target: Mapping[str, Any], sources: Sequence[Source], init: Sequence[str] = ()) -> dict[str, Fill]:
    """Decide where every parameter comes from; no tensor is read.

    Args:
        target: `{path: anything with shape and dtype}` of the model (`core.tree.flatten`).
        sources: files with the table that each is read by; together they fill the model.
        init: patterns of paths that may stay unfilled (new parameters). Those that are absent from the files are
            absent from the result.

    Returns:
        `{path: Fill}`.

    Raises:
        CheckpointError: keys that no rule maps or that have no place in the model, parameters that stay unfilled or
            are filled twice, wrong shapes or kinds of number; one message lists all of them.
    """
    fills: dict[str, Fill] = {}
    problems: list[str] = []
    for file, table in sources:
        found = contents(file.keys(), table)
        problems += _listed(f"unknown keys in {file.path}", found.unmapped.values())
        problems += _listed(f"keys that name a tensor twice in {file.path}", found.twice)
        homeless: dict[str, None] = {}
        for rule in table.rules:
            names = tuple(found.mapped[key] for key in rule.names if key in found.mapped)
            if rule.path is None or not names:
                continue
            if len(names) < len(rule.names):
                absent = [found.style.name(key) for key in rule.names if key not in found.mapped]
                problems += _listed(f"keys missing from {file.path}", absent)
            elif rule.path not in target:
                homeless |= dict.fromkeys(names)
            elif rule.path in fills:
                problems.append(f"parameter {rule.path} is in {fills[rule.path].file.path} and again in {file.path}")
            else:
                problems += _misfits(Fill(rule, file, names), target[rule.path])
            fills.setdefault(rule.path, Fill(rule, file, names))
        problems += _listed(f"keys of {file.path} with no place in the model", homeless)
    unfilled = [path for path in target if path not in fills and not matches(path, init)]
    problems += _listed("parameters that no key fills", unfilled)
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))
    return fills


def _misfits(fill: Fill, leaf: Any) -> list[str]:
    rule, problems = fill.rule, []
    shape = tuple(leaf.shape)
    if rule.stacked and (not shape or shape[0] != len(rule.names)):
        return [f"parameter {rule.path} has shape {shape}, expected {len(rule.names)} layers first"]
    wanted = shape[1:] if rule.stacked else shape
    for name in fill.names:
        tensor = tuple(fill.file.shape(name))
        try:
            made = rule.shape(tensor)
        except ValueError as error:
            problems.append(f"{name} has a wrong shape {tensor}: {error}")
            continue
        if made != wanted:
            problems.append(f"{name} of shape {tensor} makes {made}, parameter {rule.path} is {wanted}")
        if _kind(fill.file.dtype(name)) != _kind(leaf.dtype):
            problems.append(f"{name} holds {fill.file.dtype(name)}, parameter {rule.path} {leaf.dtype}")
    return problems


def _kind(dtype: Any) -> str:
    return "floating" if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype).kind


def load(
    target: Mapping[str, Any],
    sources: Sequence[Source],
    *,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    init: Sequence[str] = (),
    hold: Callable[[str, jax.Array], Any] | None = None,
) -> dict[str, Any]:
    """Read parameters; `check` comes first.

    Args:
        target: `{path: anything with shape and dtype}`; values are cast to its dtypes.
        sources: files with the table that each is read by.
        shardings: `{path: sharding}` of all paths (`core.mesh.shardings`); None puts all on the default device.
        init: patterns of paths that may stay unfilled.
        hold: what is kept of each parameter, asked for before the next is read; None for itself.

    Returns:
        `{path: jax.Array}`, or what `hold` gave, of the filled paths, in the order of `target`.

    Raises:
        CheckpointError: as `check`; or tensors that should be tied, or zero, are not.
    """
    fills = check(target, sources, init)
    _check_values(sources)
    whole, held = jax.sharding.SingleDeviceSharding(jax.devices()[0]), {}
    for path, leaf in target.items():
        if path in fills:
            array = read(fills[path], leaf.shape, leaf.dtype, shardings[path] if shardings else whole)
            held[path] = array if hold is None else hold(path, array)
    return held


def stored(target: Mapping[str, Any], sources: Sequence[Source], init: Sequence[str] = ()) -> dict[str, Stored]:
    """As `load`, with the same checks, but every parameter stays in its file, in its own dtype, until it is read."""
    fills = check(target, sources, init)
    _check_values(sources)
    return {path: Stored(fills[path], tuple(leaf.shape)) for path, leaf in target.items() if path in fills}


def shapes_in(file: TensorFile, table: Table) -> dict[str, jax.ShapeDtypeStruct]:
    """`{path: shape and dtype}` of the parameters that a file has, by the first tensor of each."""
    found = contents(file.keys(), table)
    target = {}
    for rule in table.rules:
        keys = [found.mapped[key] for key in rule.names if key in found.mapped]
        if not keys or rule.path is None:
            continue
        try:
            shape = rule.shape(file.shape(keys[0]))
        except ValueError:  # `check` says what is wrong with it
            shape = ()
        target[rule.path] = jax.ShapeDtypeStruct(
            (len(rule.names), *shape) if rule.stacked else shape, file.dtype(keys[0])
        )
    return target


def _check_values(sources: Sequence[Source]) -> None:
    """Compare the tensors that must be tied, and the parts that must be zero, with what the files hold."""
    problems = []
    for file, table in sources:
        found = contents(file.keys(), table)
        for alias, key in table.tied:
            raw, other = found.tied.get(alias), found.mapped.get(key)
            if raw and other and not _begin_alike(file, raw, other):
                problems.append(f"{raw} of {file.path} differs from {other}; the model's config ties them")
        for rule in table.rules:
            if rule.path is None:
                names = [found.mapped[key] for key in rule.names if key in found.mapped]
                full = [name for name in names if rule.part.take(file.read(name)).any()]
                problems += _listed(f"keys of {file.path} that hold values where the model has no parameter", full)
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))


def _begin_alike(file: TensorFile, one: str, other: str) -> bool:
    """Whether two matrices have one shape and leading rows of the same bits; those of an untied head differ in any."""
    if file.shape(one) != file.shape(other) or file.dtype(one) != file.dtype(other):
        return False
    rows = (slice(0, min(_PROBE, file.shape(one)[0])),)
    return file.read(one, rows).tobytes() == file.read(other, rows).tobytes()


def dead(file: TensorFile, table: Table) -> dict[str, np.ndarray]:
    """Tensors that no parameter takes, by canonical name: kept beside a checkpoint, given to `convert.save.export`."""
    return {key: file.read(raw) for key, raw in contents(file.keys(), table).dead.items()}


def _listed(what: str, names: Iterable[str]) -> list[str]:
    folded = fold(names)
    return [f"{what}: {', '.join(folded)}"] if folded else []


def fold(names: Iterable[str]) -> list[str]:
    """Names that differ in one layer number alone as one: `layers.0.bias`, `layers.1.bias` -> `layers.{0..1}.bias`."""
    groups: dict[tuple[str, str], list[int]] = {}
    singles = {}
    for name in names:
        match = re.search(r"(?<=[._/])\d+(?=[./])", name)
        key = (name[: match.start()], name[match.end() :]) if match else (name, "")
        groups.setdefault(key, []).append(int(match[0]) if match else -1)
        singles.setdefault(key, name)
    return [
        singles[key] if len(numbers) == 1 else f"{key[0]}{{{_runs(numbers)}}}{key[1]}"
        for key, numbers in groups.items()
    ]


def _runs(numbers: Iterable[int]) -> str:
    """`0..3,7` of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)
