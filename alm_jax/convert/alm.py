"""This library's own layout: every parameter under its path, layers stacked, and `config.json` that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from string import ascii_lowercase
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.names import Style
from alm_jax.convert.rules import Rearrange, Rule, Table
from alm_jax.convert.sizes import json_beside
from alm_jax.core import tree
from alm_jax.core.config import from_json, to_json
from alm_jax.core.errors import CheckpointError
from alm_jax.models.alm import AlmConfig, build
from alm_jax.models.registry import module_of

FORMAT = 1
DEAD = "dead"  # stem of the file of tensors that no parameter takes, by their canonical names in the layout of origin


@dataclass(frozen=True)
class Origin:
    """The layout that parameters came in, and how its keys were spelt: they go back to the same bits."""

    layout: str
    style: Style


def own(config: object) -> Table:
    """`decoder.blocks.attn.q.kernel`, ...: the paths themselves, of a system or of a part."""
    make = build if isinstance(config, AlmConfig) else module_of(config)
    shapes = tree.flatten(tree.abstract(lambda key: make(config, key)))
    return Table(tuple(Rule(path, path, _as_it_is(len(leaf.shape))) for path, leaf in shapes.items()))


def _as_it_is(axes: int) -> Rearrange:
    names = " ".join(ascii_lowercase[:axes])
    return Rearrange(f"{names} -> {names}")


def settings(config: object, origin: Origin | None = None) -> dict[str, Any]:
    """The content of `config.json` for a part, or for a system whose conventions are not known."""
    return header(origin) | {"config": to_json(config)}


def header(origin: Origin | None = None) -> dict[str, Any]:
    """What every `config.json` of this library begins with."""
    return {"format": FORMAT} | ({"origin": asdict(origin)} if origin else {})


def beside(file: TensorFile) -> dict[str, Any] | None:
    """The content of this library's `config.json` beside a file; None if there is none, or one of other software.

    Raises:
        CheckpointError: it is damaged, or of a newer format.
    """
    content, path = json_beside(file, "config.json"), file.path.parent / "config.json"
    if content is None or not content.keys() & {"spec", "config"} or "format" not in content:
        return None
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {content['format']!r}; this version of alm_jax reads {FORMAT}: upgrade alm_jax"
        )
    return content


def config_beside(file: TensorFile, kinds: Mapping[str, type]) -> Any:
    """The config that stands beside a file, exactly as it was; None if there is none of this library.

    Args:
        kinds: classes that it may be of or hold (`core.config.config_types`), by name.
    """
    content = beside(file)
    if content is None:
        return None
    return from_json(content["config"] if "config" in content else content["spec"]["model"], kinds)


def origin_beside(file: TensorFile) -> Origin | None:
    """The layout that a file in this library's own layout was made from, if it is noted."""
    told = (beside(file) or {}).get("origin")
    return None if told is None else Origin(told["layout"], Style(**told["style"]))


def sizes(file: TensorFile) -> Any:
    """The config of a file without a `config.json` of ours: its names do not tell which model it is.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(
        f"{file.path} holds alm_jax's own parameter names, and the config.json that alm convert wrote is not beside it"
    )
