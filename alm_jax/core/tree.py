"""Modules as flat dictionaries: every parameter has a dotted path, and sets of them are chosen by path patterns.

A module (`flax.nnx.Module`) is used as a plain pytree whose leaves are `nnx.Variable`s. Outside a forward pass the code
works on `{path: array}` dictionaries, which checkpoints, conversion tables, trainable patterns and shardings all share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax
from flax import nnx

from alm_jax.core.errors import ConfigError

Module = TypeVar("Module")
Arrays = dict[str, Any]


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def variables(module: Any) -> dict[str, nnx.Variable]:
    """`{path: Variable}` of a module in tree order, e.g. `decoder.blocks.attn.q.kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=_is_variable)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def flatten(module: Any) -> Arrays:
    """`{path: array}` of a module; arrays, tracers or `ShapeDtypeStruct`s, whatever the module holds."""
    paths = variables(module)
    return dict(zip(paths, jax.tree_util.tree_leaves(module), strict=True))


def unflatten(like: Module, arrays: Mapping[str, Any]) -> Module:
    """The module of `like`'s structure that holds `arrays`.

    Args:
        like: a module, abstract or not, whose structure and metadata are kept.
        arrays: exactly one entry a path of `like`.

    Raises:
        ConfigError: paths are missing or unknown; the message lists them all.
    """
    paths = list(variables(like))
    missing = [p for p in paths if p not in arrays]
    unknown = sorted(set(arrays) - set(paths))
    if missing or unknown:
        raise ConfigError(f"arrays do not fit the model: missing {missing or 'none'}, unknown {unknown or 'none'}")
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), [arrays[p] for p in paths])


def abstract(build: Callable[[jax.Array], Module]) -> Module:
    """The module that `build(key)` would make, with shapes and dtypes in place of arrays (no memory)."""
    return jax.eval_shape(build, jax.random.key(0))


def logical_axes(module: Any) -> dict[str, tuple[str | None, ...]]:
    """`{path: axis names}`; leading axes that stacking added count as `"layers"`."""
    result = {}
    shapes = {path: leaf.shape for path, leaf in flatten(module).items()}
    for path, variable in variables(module).items():
        axes = variable.get_metadata().get("axes")
        if axes is None:
            raise ConfigError(f"parameter {path} carries no logical axes")
        result[path] = ("layers",) * (len(shapes[path]) - len(axes)) + tuple(axes)
    return result


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted path fits any shell-style pattern (`*` also crosses dots): `decoder.*.lora_?`."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def split(arrays: Mapping[str, Any], patterns: Iterable[str]) -> tuple[Arrays, Arrays]:
    """Divide into (paths that fit a pattern, the rest); the two are disjoint and exhaustive.

    Raises:
        ConfigError: a pattern fits no path; the message names it and some paths.
    """
    patterns = tuple(patterns)
    idle = [pattern for pattern in patterns if not any(fnmatchcase(path, pattern) for path in arrays)]
    if idle:
        raise ConfigError(f"patterns {idle} fit no parameter; parameters are {_some(arrays)}")
    chosen = {path: leaf for path, leaf in arrays.items() if matches(path, patterns)}
    return chosen, {path: leaf for path, leaf in arrays.items() if path not in chosen}


def size(arrays: Mapping[str, Any]) -> int:
    """Number of values in a dictionary of arrays."""
    return sum(leaf.size for leaf in arrays.values())


def _some(names: Iterable[str], limit: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
