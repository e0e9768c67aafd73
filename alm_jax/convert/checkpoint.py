"""A checkpoint opened by its own layout: what it holds, before any tensor is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.convert import alm
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import Resolved, resolve
from alm_jax.convert.layouts import LAYOUTS, config_of, detect, heads_setting, kind_of
from alm_jax.convert.load import contents, shapes_in, stored
from alm_jax.convert.names import PLAIN
from alm_jax.convert.peft import is_adapter
from alm_jax.convert.rules import Table
from alm_jax.convert.stream import Stored
from alm_jax.core import tree
from alm_jax.core.errors import UsageError
from alm_jax.models.alm import AlmConfig, build
from alm_jax.models.registry import module_of


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and what it holds; no tensor is read.

    Attributes:
        found: where its files are. file: its tensors. layout: a name in `LAYOUTS`. config: of the part or system.
    """

    found: Resolved
    file: TensorFile
    layout: str
    config: Any

    @property
    def table(self) -> Table:
        """How its tensors make parameters."""
        return LAYOUTS[self.layout].table(self.config)

    @property
    def is_system(self) -> bool:
        """Whether it is a whole system's, though it may lack parts."""
        return isinstance(self.config, AlmConfig)


def open_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of a path or of a model's name, fetched if need be; a model with all that its file holds.

    Raises:
        CheckpointError: it cannot be found, read, or told what it is.
    """
    found = resolve(name)
    file = open_tensors(found.path)
    layout = detect(file.keys(), whole=True)
    return Checkpoint(found, file, layout, config_of(file, layout))


def layout_for(config: Any, paths: Iterable[str] = ()) -> str:
    """The layout that a part, or a system with the parameters `paths`, is written in unless another is asked for.

    Raises:
        UsageError: there is none.
    """
    needed = {path for path in paths if not path.startswith("encoder.")}
    for name in layouts_of(config):
        if not isinstance(config, AlmConfig) or needed <= {rule.path for rule in LAYOUTS[name].table(config).rules}:
            return name
    raise UsageError(
        f"no published layout holds this {type(config).__name__}: give --to alm"
        + (", or --part encoder or --part decoder" if isinstance(config, AlmConfig) else "")
    )


def layouts_of(config: Any) -> list[str]:
    """The layouts that a part or system can be written in, those of `transformers` first."""
    fitting = [name for name, layout in LAYOUTS.items() if kind_of(name) is type(config) and not layout.becomes]
    if isinstance(config, AlmConfig):
        parts = (type(config.encoder), type(config.aligner))
        fitting = [name for name in fitting if LAYOUTS[name].parts == parts]
    return sorted(fitting, key=lambda name: not is_hf(name))


def is_hf(layout: str) -> bool:
    """Whether a layout has the names of `transformers`."""
    return "hf" in layout.split("_")


def shapes_of(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """`{path: shape and dtype}` of the model that a config describes."""
    make = build if isinstance(config, AlmConfig) else module_of(config)
    return tree.flatten(tree.abstract(lambda key: make(config, key)))


def headless(config: Any) -> list[Any]:
    """The parts of a config whose number of heads nothing tells: it is 0 there."""
    heads = getattr(config, "heads", None)
    if heads or not dataclasses.is_dataclass(config):  # of a CLAP, the tower that listens has to tell them
        return []
    inner = [part for field in dataclasses.fields(config) for part in headless(getattr(config, field.name))]
    return inner or ([config] if heads == 0 else [])


def heads_untold(config: Any, folder: Path) -> list[str]:
    """What to say of each part whose number of heads nothing tells, where `folder` is that of its checkpoint."""
    return [
        f"nothing tells how many heads the {type(part).__name__.removesuffix('Config')} of width "
        f"{getattr(part, 'hidden', part.dim)} has (put a config.json with {heads_setting(part)} into {folder})"
        for part in headless(config)
    ]


def stored_in(checkpoints: Sequence[Checkpoint], config: Any) -> dict[str, Stored]:
    """The parameters of one part or system that lie in some files together, none of them read.

    All of a part has to be there, but for adapters; of a system, what its own checkpoint holds.

    Raises:
        CheckpointError: keys that no rule knows, parameters that are missing, wrong shapes or dtypes; all are listed.
    """
    sources = [(opened.file, LAYOUTS[opened.layout].table(config)) for opened in checkpoints]
    target = {}
    for file, table in sources:
        target |= shapes_in(file, table)
    if not isinstance(config, AlmConfig) and not all(map(is_adapter, target)):
        if not headless(config):
            target |= {path: leaf for path, leaf in shapes_of(config).items() if path in target or not is_adapter(path)}
        rules = [rule.path for _, table in sources for rule in table.rules if rule.path and not is_adapter(rule.path)]
        target = {path: jax.ShapeDtypeStruct((), np.float32) for path in rules} | target
    return stored(target, sources)


def origin_of(opened: Checkpoint) -> alm.Origin:
    """The layout and spelling that a checkpoint has, or had before it was written in this library's names."""
    if opened.layout == "alm":
        return alm.origin_beside(opened.file) or alm.Origin(layout_for(opened.config), PLAIN)
    return alm.Origin(opened.layout, contents(opened.file.keys(), opened.table).style)
