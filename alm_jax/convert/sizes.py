"""What a checkpoint says of its model's sizes: in the shapes of its tensors, and in the JSON files beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, TypeVar

from alm_jax.convert.formats import Below, TensorFile
from alm_jax.core.errors import CheckpointError

Config = TypeVar("Config")
# `layers.mlp.Activation`, and what `transformers` calls it; the first is written.
ACTIVATIONS = {
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh"),
    "relu": ("relu",),
}


def settings_of(file: TensorFile) -> dict[str, Any]:
    """The `config.json` of `transformers` in a checkpoint's folder, or a part's section of it; empty if there is none.

    Raises:
        CheckpointError: it is not readable JSON.
    """
    told = json_beside(file, "config.json") or {}
    return told.get(file.section, told) if isinstance(file, Below) else told


def json_beside(file: TensorFile, name: str) -> dict[str, Any] | None:
    """The object in a JSON file beside a checkpoint; None if there is no such file.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    path = file.path.parent / name
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(content).__name__}, expected an object")
    return content


def shape_of(file: TensorFile, pattern: str, axes: int) -> tuple[int, ...] | None:
    """Shape of the first tensor whose key fits; None if none does, or if it has other axes (which `load` reports)."""
    key = next((key for key in file.keys() if re.search(pattern, key)), None)
    shape = () if key is None else tuple(file.shape(key))
    return shape if len(shape) == axes and all(shape) else None


def heads_of(dim: int, width: int) -> int:
    """Heads of the usual width; 0 if that does not divide `dim`."""
    return 0 if dim % width else dim // width


def number(file: TensorFile, told: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """A positive number from the settings `told`, or the default.

    Raises:
        CheckpointError: it is no such number.
    """
    value = told.get(name)
    if value is None:
        return default
    if not positive(value, whole=kind is int):
        raise CheckpointError(f"{file.path}: its config says that {name} is {value!r}; expected a number above 0")
    return kind(value)


def positive(value: Any, whole: bool = False) -> bool:
    """Whether a value is a number above 0, and a whole one."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf
    return number and (not whole or value == int(value))


def from_settings(
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    fixed: Mapping[str, Any] | None = None,
    problems: Iterable[str] = (),
) -> dict[str, Any]:
    """Fields of a config of ours from a `config.json` of `transformers`.

    Args:
        names: `{field of ours: setting}`, of numbers. fixed: settings that have one value here; absent, they are taken
            to have it.
        problems: what the caller found in other settings.

    Raises:
        CheckpointError: settings are missing, no numbers above 0, or have another value than the fixed one, or there
            are problems; all of them are listed.
    """
    problems = [
        f"{name} is missing"
        if settings.get(name) is None
        else f"{name} is {settings[name]!r}; expected a number above 0"
        for name in names.values()
        if not positive(settings.get(name), whole=not name.endswith(("_eps", "_epsilon")))
    ] + list(problems)
    for name, value in (fixed or {}).items():
        if settings.get(name, value) != value:
            problems.append(f"{name} is {settings[name]!r} (expected {value!r})")
    if problems:
        raise CheckpointError(
            f"config.json: not a supported {settings.get('model_type', 'model')}: {'; '.join(problems)}"
        )
    return {ours: settings[name] for ours, name in names.items()}


def to_settings(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The settings that `from_settings` reads, of a config of ours."""
    return {name: getattr(config, ours) for ours, name in names.items()}


def told_by(file: TensorFile, read: Callable[[Mapping[str, Any]], Config], settings: Mapping[str, Any]) -> Config:
    """`read(settings)` (a `from_hf_config`), where an error names the file."""
    try:
        return read(settings)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def activation_of(settings: Mapping[str, Any], name: str, usual: str) -> tuple[Any, list[str]]:
    """The activation that a setting names, and what is wrong with that setting."""
    kind = settings.get(name, usual)
    ours = next((ours for ours, theirs in ACTIVATIONS.items() if kind in theirs), None)
    known = [name for names in ACTIVATIONS.values() for name in names]
    return ours or "gelu", [] if ours else [f"{name} is {kind!r}; expected {', '.join(known)}"]


def count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the group of `pattern` finds: how many layers there are."""
    found = [int(match[1]) for key in keys if (match := re.search(pattern, key))]
    return max(found, default=-1) + 1
