"""What a checkpoint says of its model's sizes: in the shapes of its tensors, and in the JSON files beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.core.errors import CheckpointError

_GGUF_SETTINGS = {
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "rope_theta": "llama.rope.freq_base",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
}


def settings_of(file: TensorFile) -> dict[str, Any]:
    """What is said beside the tensors, in the names of `transformers`: `config.json` in a checkpoint's folder, or the
    metadata of GGUF; empty if there is none.

    Raises:
        CheckpointError: `config.json` is not readable JSON.
    """
    told = {name: file.metadata[key] for name, key in _GGUF_SETTINGS.items() if key in file.metadata}
    return told or json_beside(file, "config.json") or {}


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or kind(value) != value:
        raise CheckpointError(f"{file.path}: its config says that {name} is {value!r}; expected a number above 0")
    return kind(value)


def from_settings(
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    fixed: Mapping[str, Any] | None = None,
    problems: Iterable[str] = (),
) -> dict[str, Any]:
    """Fields of a config of ours from a `config.json` of `transformers`.

    Args:
        names: `{field of ours: setting}`. fixed: settings that have one value here; absent, they are taken to have it.
        problems: what the caller found in other settings.

    Raises:
        CheckpointError: settings are missing, are numbers that are not above 0 or text where the config has a number,
            have another value than the fixed one, or there are problems; all of them are listed.
    """
    problems = [f"{name} is missing" for name in names.values() if settings.get(name) is None] + list(problems)
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


def count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the group of `pattern` finds: how many layers there are."""
    found = [int(match[1]) for key in keys if (match := re.search(pattern, key))]
    return max(found, default=-1) + 1
