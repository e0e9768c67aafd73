"""Experiments as values: nested frozen dataclasses, changed by dotted path, shown flat, kept as JSON.

A path such as `stages.0.optim.learning_rate` or `stages.align.steps` walks fields, tuple items (by index or by the
item's `name`) and dictionary keys. `--set` and a config file's `sweep()` both go through `apply_overrides`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib.util
import numbers
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, TypeVar, Union

from alm_jax.core.errors import CheckpointError, ConfigError

Config = TypeVar("Config")
Resolver = Callable[[str], Any]

_NO = object()
_WORDS = {"none": None, "null": None, "true": True, "false": False}


def apply_overrides(config: Config, overrides: Mapping[str, Any], resolver: Resolver | None = None) -> Config:
    """A copy of `config` with the values at some dotted paths replaced.

    Each node is rebuilt once with all its changes, so that values which only fit together can be set together; a path
    is set before the paths below it.

    Args:
        config: a dataclass instance, nested through dataclasses, tuples and dictionaries.
        overrides: `{path: value}`. A value fits the field's annotation, or is a string that is read by it (`"1e-4"`,
            `"none"`, `"(1, 2)"`, a Literal's or Enum's spelling) or, where the field holds a config, a name.
        resolver: gives the config that a name stands for, or raises ConfigError.

    Raises:
        ConfigError: a path does not exist (with the closest one that does), a value has the wrong type, or a config
            refuses the combination.
    """
    return _Editor(config, resolver).edit(config, type(config), dict(overrides), "")


def coerce(value: Any, hint: Any, at: str, resolver: Resolver | None = None) -> Any:
    """`value` as the annotation `hint` wants it, or a ConfigError that names the path `at`."""
    arms = _arms(hint)
    # Text is tried as a plain string only after every narrower reading has failed.
    for arm in sorted(arms, key=lambda arm: arm is str):
        result = _as(arm, value, at, resolver)
        if result is not _NO:
            return result
    given = repr(value) if isinstance(value, str) else f"{_shorten(value)} ({type(value).__name__})"
    expected = _spell(hint)
    if isinstance(value, str) and resolver is not None and any(_is_config_class(arm) for arm in arms):
        try:
            named = resolver(value)
        except ConfigError as error:
            raise ConfigError(f"{at}: {error}") from error
        if isinstance(named, tuple(arm for arm in arms if isinstance(arm, type))):
            return named
        given = f"{value!r}, which names a {type(named).__name__}"
    raise ConfigError(f"{at}: expected {expected}, got {given}")


def check_types(config: Any) -> None:
    """Raise ConfigError, with its path, if a value is none that its field's annotation allows."""

    def check(node: Any, hint: Any, at: str) -> None:
        arms = _arms(hint)
        if Any not in arms and not (str in arms and isinstance(node, str)):
            fitting = coerce(node, hint, at)
            # Overrides may be text or lists, which are read as the field wants them; what a config holds may not.
            if isinstance(node, str | list) and type(fitting) is not type(node):
                raise ConfigError(f"{at}: expected {_spell(hint)}, got {_shorten(node)} ({type(node).__name__})")
        for key, child, child_hint in _items(node, hint):
            check(child, child_hint, _join(at, str(key)))

    check(config, type(config), "")


def flat(config: Any) -> dict[str, Any]:
    """`{path: value}` with one entry a number, string, None or tuple of them, in field order.

    Where the annotation leaves the kind of config open (a union of encoders), the entry at the node's own path is its
    class name. This is the text that golden tests and run folders show.
    """
    result: dict[str, Any] = {}
    _flatten(config, type(config), "", result)
    return result


def to_json(config: Any) -> Any:
    """`config` as plain JSON values, from which `from_json` makes an equal config.

    Dataclasses are objects with their class name under `"@type"`, tuples are arrays, enum members are named.

    Raises:
        ConfigError: a value that JSON cannot give back exactly (a list, an array, a function), with its path.
    """
    return _encode(config, type(config).__name__)


def from_json(data: Any, types: Mapping[str, type]) -> Any:
    """The config that `to_json` wrote.

    Args:
        data: plain JSON values.
        types: the classes that may occur, by name; see `config_types`. Fields added since with a default take it.

    Raises:
        CheckpointError: a class or field that this version does not know, or a field without a value.
    """
    if isinstance(data, list):
        return tuple(from_json(item, types) for item in data)
    if not isinstance(data, dict):
        return data
    if "@type" not in data:
        return {key: from_json(value, types) for key, value in data.items()}
    name = data["@type"]
    if name not in types:
        raise CheckpointError(f"saved config holds an unknown class {name!r}; this version knows {_list(types)}")
    cls = types[name]
    if _is_enum(cls):
        if data["name"] not in cls.__members__:
            raise CheckpointError(f"saved {name} is {data['name']!r}, which this version does not know: {_spell(cls)}")
        return cls[data["name"]]
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values = {key: from_json(value, types) for key, value in data.items() if key != "@type"}
    unknown = sorted(set(values) - set(known))
    missing = [key for key, field in known.items() if key not in values and _has_no_default(field)]
    if unknown or missing:
        raise CheckpointError(f"saved {name} does not fit this version: unknown fields {unknown}, missing {missing}")
    return cls(**values)


def config_types(*roots: type) -> dict[str, type]:
    """`{name: class}` of the dataclasses and enums that `roots` and their fields' annotations mention."""
    found: dict[str, type] = {}
    queue: list[Any] = list(roots)
    while queue:
        hint = queue.pop()
        queue += [arg for arg in typing.get_args(hint) if typing.get_origin(hint) is not Literal]
        if not (_is_config_class(hint) or _is_enum(hint)) or found.get(hint.__name__) is hint:
            continue
        if hint.__name__ in found:
            raise ConfigError(f"two config classes are named {hint.__name__}: {found[hint.__name__]} and {hint}")
        found[hint.__name__] = hint
        if dataclasses.is_dataclass(hint):
            queue += _hints(hint).values()
    return found


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`": did you mean 'x'?"` with the closest of `names`, or an empty string."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ""


@dataclasses.dataclass(frozen=True)
class _Editor:
    root: Any
    resolver: Resolver | None

    def edit(self, node: Any, hint: Any, edits: dict[str, Any], at: str) -> Any:
        """`node` after `edits`, whose paths are relative to it (`""` is the node itself)."""
        if "" in edits:
            node = coerce(edits.pop(""), hint, at or hint.__name__, self.resolver)
        if not edits:
            return node
        children = _children(node, hint)
        grouped: dict[Any, dict[str, Any]] = {}
        for path, value in edits.items():
            name = _first(path, children)
            if name is None and isinstance(node, Mapping):
                children[path] = (path, None, _item_hint(hint, path))
                name = path
            if name is None:
                raise ConfigError(self.unknown(node, at, path, children))
            grouped.setdefault(name, {})[path[len(name) + 1 :]] = value
        changes: dict[Any, Any] = {}
        for name, below in grouped.items():
            key, child, child_hint = children[name]
            # `stages.0` and `stages.align` may be one item: the second edit goes on from the first.
            changes[key] = self.edit(changes.get(key, child), child_hint, below, _join(at, name))
        return _replace(node, changes, at)

    def unknown(self, node: Any, at: str, path: str, children: Mapping[str, Any]) -> str:
        """The message for a path that leads nowhere, with the nearest that does."""
        if not children:
            value = "None; set it to a config first" if node is None else f"{_shorten(node)}, with nothing below it"
            return f"cannot set {_join(at, path)}: {at} is {value}"
        name = path.split(".")[0]
        elsewhere = [known for known in flat(self.root) if known.endswith(f".{path}")]
        guess = did_you_mean(name, children) or (f": did you mean {elsewhere[0]!r}?" if elsewhere else "")
        where = f"{at} ({type(node).__name__})" if at else type(node).__name__
        return f"unknown field {name!r} in {where}{guess or '.'} It holds {_list(children)}"


def _items(node: Any, hint: Any) -> list[tuple[Any, Any, Any]]:
    """(key, value, annotation) of what stands one level below `node`."""
    if dataclasses.is_dataclass(node):
        hints = _hints(type(node))
        return [(f.name, getattr(node, f.name), hints[f.name]) for f in dataclasses.fields(node) if f.init]
    if isinstance(node, Mapping):
        return [(key, value, _item_hint(hint, key)) for key, value in node.items()]
    if isinstance(node, tuple):
        return [(i, item, _item_hint(hint, i)) for i, item in enumerate(node)]
    return []


def _children(node: Any, hint: Any) -> dict[str, tuple[Any, Any, Any]]:
    """`_items` by the names that a path may use: tuple items also by their own `name`, where one alone has it."""
    items = _items(node, hint)
    if not isinstance(node, tuple):
        return {str(item[0]): item for item in items}
    names = [getattr(item, "name", None) for item in node]
    by_name = {name: item for name, item in zip(names, items) if isinstance(name, str) and names.count(name) == 1}
    return {str(item[0]): item for item in items} | by_name


def _first(path: str, names: Iterable[str]) -> str | None:
    """The longest of `names` that `path` is or begins with; dictionary keys may hold dots themselves."""
    fitting = [name for name in names if path == name or path.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def _replace(node: Any, changes: dict[Any, Any], at: str) -> Any:
    if isinstance(node, Mapping):
        return {**node, **changes}
    if isinstance(node, tuple):
        return tuple(changes.get(i, item) for i, item in enumerate(node))
    try:
        return dataclasses.replace(node, **changes)
    except (ConfigError, ValueError, TypeError) as error:  # the config's own check
        raise ConfigError(f"{at}: {error}" if at else str(error)) from error


def _as(arm: Any, value: Any, at: str, resolver: Resolver | None) -> Any:
    """`value` as one arm of a union, or `_NO`."""
    origin = typing.get_origin(arm)
    if arm is Any:
        return _literal(value) if isinstance(value, str) else value
    if arm is type(None):
        return None if value is None or _word(value) is None else _NO
    if origin is Literal:
        return next((c for c in typing.get_args(arm) if _same(c, value) or str(c) == value), _NO)
    if origin in (tuple, Sequence) or arm is tuple:
        return _as_tuple(arm, value, at, resolver)
    if origin in (dict, Mapping) or arm is dict:
        value = _literal(value) if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            return _NO
        return {k: coerce(v, _item_hint(arm, k), _join(at, str(k)), resolver) for k, v in value.items()}
    if arm in (bool, int, float, str):
        return _as_scalar(arm, value)
    if _is_enum(arm) and isinstance(value, str):
        return next((member for member in arm if value in (member.name, str(member.value))), _NO)
    cls = origin or arm
    return value if isinstance(cls, type) and isinstance(value, cls) else _NO


def _as_scalar(kind: type, value: Any) -> Any:
    if kind is str:
        return value if isinstance(value, str) else _NO
    if kind is bool:
        word = _word(value) if isinstance(value, str) else value
        return word if isinstance(word, bool) else _NO
    if isinstance(value, str):
        try:
            value = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            return _NO
        # `1e6` steps: a float's spelling of a whole number.
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
    number = numbers.Integral if kind is int else numbers.Real
    return kind(value) if isinstance(value, number) and not isinstance(value, bool) else _NO


def _as_tuple(arm: Any, value: Any, at: str, resolver: Resolver | None) -> Any:
    items = _split(value) if isinstance(value, str) else value
    if not isinstance(items, (tuple, list)):
        return _NO
    args = typing.get_args(arm)
    if typing.get_origin(arm) is tuple and args and args[-1] is not Ellipsis and len(items) != len(args):
        return _NO
    return tuple(coerce(item, _item_hint(arm, i), _join(at, str(i)), resolver) for i, item in enumerate(items))


def _split(text: str) -> list[str]:
    """Items of `(a, (b, c))`, `[a, b]` or `a, b`, split at the outer commas; quotes are not needed."""
    items, depth = [""], 0
    for char in text.strip():
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    if len(items) == 1 and items[0][:1] + items[0][-1:] in ("()", "[]"):
        return _split(f"{items[0][1:-1]},")
    return [item.strip().strip("'\"") for item in items if item.strip()]


def _literal(text: str) -> Any:
    """Text for a field of any type: a Python literal, else the text itself."""
    try:
        return _word(text) if text.lower() in _WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _word(value: Any) -> Any:
    return _WORDS.get(value.lower(), _NO) if isinstance(value, str) else _NO


def _arms(hint: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _arms(typing.get_args(hint)[0])
    return typing.get_args(hint) if origin in (Union, UnionType) else (hint,)


def _item_hint(hint: Any, key: Any) -> Any:
    """Annotation of a container's item: `tuple[X, ...]` by index, `dict[K, X]` by key."""
    for arm in _arms(hint):
        origin, args = typing.get_origin(arm), typing.get_args(arm)
        if origin in (dict, Mapping):
            return args[1]
        if origin is Sequence or (origin is tuple and args[-1] is Ellipsis):
            return args[0]
        if origin is tuple and isinstance(key, int) and key < len(args):
            return args[key]
    return Any


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_config_class(hint: Any) -> bool:
    return isinstance(hint, type) and not _is_enum(hint) and hint.__module__ != "builtins" and hint is not Any


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _flatten(node: Any, hint: Any, at: str, result: dict[str, Any]) -> None:
    is_config = dataclasses.is_dataclass(node)
    if is_config and hint is not type(node):
        result[at] = type(node).__name__
    items = [] if isinstance(node, tuple) and not _holds_config(node) else _items(node, hint)
    for key, child, child_hint in items:
        _flatten(child, child_hint, _join(at, str(key)), result)
    if not items and not is_config:
        result[at] = node.name if isinstance(node, enum.Enum) else node


def _holds_config(node: Any) -> bool:
    if isinstance(node, tuple):
        return any(_holds_config(item) for item in node)
    return dataclasses.is_dataclass(node) or isinstance(node, Mapping)


def _encode(node: Any, at: str) -> Any:
    if isinstance(node, enum.Enum):
        return {"@type": type(node).__name__, "name": node.name}
    if node is None or type(node) in (bool, int, float, str):
        return node
    if type(node) is tuple:
        return [_encode(item, f"{at}.{i}") for i, item in enumerate(node)]
    if isinstance(node, dict) and all(isinstance(key, str) and key != "@type" for key in node):
        return {key: _encode(value, f"{at}.{key}") for key, value in node.items()}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = {f.name: _encode(getattr(node, f.name), f"{at}.{f.name}") for f in dataclasses.fields(node) if f.init}
        return {"@type": type(node).__name__, **fields}
    raise ConfigError(f"{at}: a config holds numbers, strings, tuples, dicts and configs, got {type(node).__name__}")


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if _is_enum(hint):
        return "one of " + ", ".join(member.name for member in hint)
    arms = _arms(hint)
    if arms != (hint,):
        return " or ".join(_spell(arm) for arm in arms)
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _shorten(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _list(names: Iterable[str], limit: int = 20) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A Python file that defines `get_config()` and, if it has variants to compare, `sweep()`."""

    path: Path
    module: ModuleType

    def get_config(self) -> Any:
        """The experiment that the file describes."""
        if not callable(getattr(self.module, "get_config", None)):
            raise ConfigError(f"{self.path}: defines no get_config(), which returns the experiment")
        config = _run(self.path, self.module.get_config)
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            raise ConfigError(f"{self.path}: get_config() must return an experiment, got {_shorten(config)}")
        _run(self.path, lambda: check_types(config))
        return config

    def sweep(self) -> list[dict[str, Any]]:
        """The file's variants as overrides `{path: value}`; one without changes if it defines no `sweep()`."""
        if not hasattr(self.module, "sweep"):
            return [{}]
        items = _run(self.path, lambda: list(self.module.sweep()))
        for item in items:
            if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
                raise ConfigError(f"{self.path}: sweep() gives dictionaries {{path: value}}, got {_shorten(item)}")
        return [dict(item) for item in items]


def shipped_configs() -> Path:
    """The folder of the configs that come with the library: inside a wheel, or the checkout's `configs`."""
    package = Path(__file__).resolve().parent.parent
    return package / "_configs" if (package / "_configs").is_dir() else package.parent / "configs"


def load_config_file(name: str | Path) -> ConfigFile:
    """Run a config file, given by its path or, if it is a shipped one, by name (`ltu/tiny`, `configs/ltu/tiny.py`).

    Raises:
        ConfigError: no such file (with the closest shipped name), or an exception in it, with its file and line.
    """
    path = _find_config(str(name))
    # Dataclasses look their module up by name while they are made; the path makes it unique.
    spec = importlib.util.spec_from_file_location(f"alm_config:{path.resolve()}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: a config is a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _run(path, lambda: spec.loader.exec_module(module))
    return ConfigFile(path, module)


def _find_config(name: str) -> Path:
    root = shipped_configs()
    short = name.removeprefix("configs/")
    for path in (Path(name), Path(f"{name}.py"), root / short, root / f"{short}.py"):
        if path.is_file():
            return path
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    guess = did_you_mean(short.removesuffix(".py"), names) or "."
    raise ConfigError(f"no config file {name!r}{guess} Give a path, or one that is shipped: {_list(names) or 'none'}")


def _run(path: Path, function: Callable[[], Any]) -> Any:
    """Call into a config file; what it raises becomes one line with the file's line number."""
    try:
        return function()
    except Exception as error:
        # A module's code knows its file by its absolute path.
        here = (str(path), str(path.absolute()))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in here]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        where = f"{path}:{lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {kind}{getattr(error, 'msg', error)}") from error
